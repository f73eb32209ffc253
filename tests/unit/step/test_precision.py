"""Narrow numbers: what is computed in them, what is not, and what fp16 does when it overflows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from velodrome.data.batches import map_tensors
from velodrome.step.precision import resolve_precision
from velodrome.testing.tiny import tiny_classification, tiny_cnn, tiny_mlp

CPU = torch.device("cpu")


class Spy(nn.Module):
    """A linear layer that notes the types it meets."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.seen = []

    def forward(self, x):
        out = self.linear(x)
        self.seen.append((self.training, out.dtype))
        return {"logits": out, "twice": (out, out)}


def batches(n=64, size=16, features=8):
    x, y = tiny_classification(n, features)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_models_compute_in_narrow_numbers_and_losses_see_wide_ones(precision, dtype):
    model = Spy()
    seen = []

    def loss(output, target):
        seen.extend([output["logits"].dtype, output["twice"][1].dtype])
        return F.cross_entropy(output["logits"], target)

    trainer = vd.Trainer(model, "sgd", lr=0.1, loss=loss, precision=precision, device="cpu", progress=False)
    result = trainer.fit(batches(), batches(), epochs=1)
    assert {kind for _, kind in model.seen} == {dtype}
    assert {training for training, _ in model.seen} == {True, False}
    assert set(seen) == {torch.float32}
    assert next(model.parameters()).dtype == torch.float32
    assert math.isfinite(result.metrics["val/loss"])
    assert not torch.is_autocast_enabled("cpu")
    assert not model._forward_hooks
    assert model(torch.zeros(1, 8))["logits"].dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_loop_of_ones_own_is_narrow_too(precision):
    model = tiny_mlp()
    dtypes = []
    trainer = vd.Trainer(model, "sgd", lr=0.1, precision=precision, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for x, y in epoch.train(batches()):
            hidden = trainer.model[0](x)  # a part of the model: in autocast, as it came
            output = trainer.model(x)
            dtypes.append((hidden.dtype, output.dtype))
            trainer.step(F.cross_entropy(output, y))
        for x, _ in epoch.evaluate(batches()):
            dtypes.append((trainer.model[0](x).dtype, trainer.model(x).dtype))
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert set(dtypes) == {(narrow, torch.float32)}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_update_uses_the_weights_of_the_update_before(precision):
    """Autocast keeps narrow copies of the weights for as long as its context lasts: they must not be trained on again."""
    model, data = tiny_cnn(), [(torch.randn(6, 1, 8, 8), torch.arange(6) % 3) for _ in range(4)]
    twin = copy.deepcopy(model)
    arguments = {"init_scale": 8.0} if precision == "fp16" else None
    trainer = vd.Trainer(model, torch.optim.SGD(model.parameters(), lr=0.5), loss="cross_entropy", precision=precision,
                         scaler_args=arguments, accumulate=2, device="cpu", progress=False)  # fmt: skip
    trainer.fit(data, epochs=2)
    # The plain loop, with the context around the forward pass only.
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=8.0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    for _ in range(2):
        for first in (0, 2):
            for x, y in data[first : first + 2]:
                with torch.autocast("cpu", dtype=dtype):
                    output = twin(x)
                scaler.scale(F.cross_entropy(output.float(), y)).backward()
            scaler.unscale_(optimizer)
            for p in twin.parameters():
                p.grad /= 2
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_evaluation_inside_of_training_leaves_training_as_it_was():
    class Evaluate(vd.Callback):
        def on_step_end(self, trainer):
            trainer.evaluate(batches())

    models = [tiny_mlp(), tiny_mlp()]
    for model, callbacks in zip(models, ([Evaluate()], []), strict=True):
        trainer = vd.Trainer(model, "sgd", lr=0.5, loss="cross_entropy", precision="bf16", callbacks=callbacks, device="cpu", progress=False)  # fmt: skip
        trainer.fit(batches(), epochs=2)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


class Overflowing:
    """A loss whose gradient overflows in chosen calls of the training phase, while the loss itself stays finite."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, output, target):
        self.calls += 1
        loss = F.cross_entropy(output, target)
        return loss * 1e34 if self.calls in self.at else loss  # times the scale 65536 it is over 3e38


def test_fp16_skips_and_counts_updates_that_overflow_and_the_loss_recovers():
    torch.manual_seed(0)
    model = tiny_mlp()
    kept = []

    class Weights(vd.Callback):
        def on_step_end(self, trainer):
            kept.append(copy.deepcopy(trainer.model.state_dict()))

    loss = Overflowing(at=(3, 4))
    trainer = vd.Trainer(model, "sgd", lr=0.5, loss=loss, precision="fp16", callbacks=[Weights()], device="cpu", progress=False)  # fmt: skip
    result = trainer.fit(batches(64, 16), epochs=8)
    first, last = result.history[0], result.history[-1]
    assert first["skipped_steps"] == last["skipped_steps"] == 2
    assert trainer.progress.steps_done == 32
    # updates 3 and 4 changed nothing, 5 did
    assert all(
        torch.equal(kept[1][name], kept[2][name]) and torch.equal(kept[2][name], kept[3][name]) for name in kept[0]
    )
    assert any(not torch.equal(kept[3][name], kept[4][name]) for name in kept[0])
    assert last["train/loss"] < 0.5
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_nan_batch_with_fp16_is_skipped_and_no_number_in_the_mean():
    data = batches(64, 16)
    data[1] = (torch.full_like(data[1][0], float("nan")), data[1][1])
    model = tiny_mlp()
    result = vd.fit(model, data, epochs=1, loss="cross_entropy", optimizer="sgd", lr=0.1, precision="fp16",
                    clip_norm=1.0, device="cpu", progress=False)  # fmt: skip
    assert result.metrics["skipped_steps"] == 1
    assert math.isfinite(result.metrics["train/loss"])
    assert math.isfinite(result.metrics["train/grad_norm"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_fp16_that_never_finds_a_scale_ends_the_run():
    data = [(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.long))] * 60
    data[0] = batches(4, 4)[0]
    with pytest.raises(vd.errors.NumericsError, match="loss scale fell"):
        vd.fit(tiny_mlp(), data, epochs=1, loss="cross_entropy", optimizer="sgd", lr=0.1, precision="fp16",
               device="cpu", progress=False)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_nan_in_one_batch_stops_the_run_and_is_never_logged_or_best(precision, tmp_path):
    data = batches(64, 16)
    data[2] = (torch.full_like(data[2][0], float("nan")), data[2][1])
    with pytest.raises(vd.errors.NumericsError, match="loss became nan"):
        vd.fit(tiny_mlp(), data, epochs=2, loss="cross_entropy", optimizer="sgd", lr=0.1, precision=precision,
               run_dir=tmp_path / "run", device="cpu", progress=False)  # fmt: skip
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not (tmp_path / "run" / "checkpoints" / "best.json").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # no row was ever written


def test_tokens_with_fp16_do_not_overflow_at_the_start():
    """Sums over thousands of tokens would: the weights of micro-batches are relative to a window's usual number."""
    x, y = tiny_classification(64, 8)

    def step(model, batch):
        x, y = batch
        return {"loss": F.cross_entropy(model(x), y), "items": torch.tensor(4096 * len(x))}

    trainer = vd.Trainer(tiny_mlp(), "sgd", lr=0.1, step_fn=step, precision="fp16", accumulate=2, device="cpu", progress=False)  # fmt: skip
    result = trainer.fit(list(zip(x.split(8), y.split(8), strict=True)), epochs=1)
    assert result.metrics["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("fp17", "Did you mean|fp16"), ("tf32", "needs a CUDA device"), (None, "is unknown")],
)
def test_unknown_and_impossible_precisions_are_refused(name, fragment):
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        resolve_precision(name, CPU, map_tensors)


def test_arguments_of_a_scaler_go_with_fp16_only():
    with pytest.raises(vd.errors.ArgumentError, match='They go with "fp16"'):
        vd.Trainer(tiny_mlp(), "sgd", lr=0.1, precision="bf16", scaler_args={"init_scale": 4.0}, device="cpu")
    with pytest.raises(vd.errors.ArgumentError, match="GradScaler refused"):
        vd.Trainer(tiny_mlp(), "sgd", lr=0.1, precision="fp16", scaler_args={"initial": 4.0}, device="cpu")


@pytest.mark.parametrize("log_every", ["1 step", "50 steps"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_schedule_does_not_move_for_updates_that_overflowed(log_every, fused):
    model = tiny_mlp()
    rates = []

    class Rates(vd.Callback):
        def on_step_end(self, trainer):
            rates.append(trainer._windows.of(None).learning_rate)  # with which the update was made

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    trainer = vd.Trainer(
        model, optimizer, loss=Overflowing(at=(3, 4, 7)), precision="fp16", callbacks=[Rates()], log_every=log_every,
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda updates: 1.0 / (1 + updates)), scheduler_every="step",
        device="cpu", progress=False,
    )  # fmt: skip
    result = trainer.fit(batches(32, 4), epochs=1)
    assert result.metrics["skipped_steps"] == 3
    assert rates == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 4, 1 / 5, 1 / 5])


def test_skipped_updates_are_told_with_their_epoch(capsys):
    vd.fit(tiny_mlp(), batches(64, 16), steps=3, loss=Overflowing(at=(2,)), optimizer="sgd", lr=0.5, precision="fp16",
           device="cpu", progress=True)  # fmt: skip
    assert "1 of 3 updates overflowed and were skipped in epoch 1" in "".join(capsys.readouterr())


def test_an_epoch_in_which_every_update_overflowed_is_told_to_everybody(capsys):
    vd.fit(tiny_mlp(), batches(64, 16), epochs=1, loss=Overflowing(at=range(100)), optimizer="sgd", lr=0.5, precision="fp16",
           device="cpu", progress=False)  # fmt: skip
    assert "all 4 updates of epoch 1 overflowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "avx512_f": True}, True),
        ({"architecture": "aarch64"}, False),  # not known, so nothing is said
    ],
)
def test_a_cpu_without_instructions_for_bf16_is_told_so(monkeypatch, tmp_path, has, says):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    trainer = vd.Trainer(
        tiny_mlp(),
        "sgd",
        lr=0.1,
        loss="cross_entropy",
        precision="bf16",
        device="cpu",
        progress=False,
        run_dir=tmp_path / "run",
        loggers=(),
    )
    trainer.fit(tiny_classification(num_samples=8), batch_size=4, epochs=1)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert ('precision="bf16" will not pay here: this CPU has neither amx_bf16 nor avx512_bf16' in log) is says
