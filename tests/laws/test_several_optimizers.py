"""A GAN in a loop of one's own: every update is that of the plain loop, with accumulation, clipping and fp16 each right."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd


def gan():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "g": nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)),
            "d": nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)),
        }
    )


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)) for n in (8, 5, 8, 3, 8)]


def losses(model, real, noise):
    """The discriminator's loss and the generator's, as a function so that the second is computed after the first's update."""

    def of_d():
        fake = model["g"](noise).detach()
        scores = torch.cat([model["d"](real), model["d"](fake)])
        return F.binary_cross_entropy_with_logits(scores, (torch.arange(len(scores)) < len(real)).float()[:, None])

    def of_g():
        return F.binary_cross_entropy_with_logits(model["d"](model["g"](noise)), torch.ones(len(noise), 1))

    return of_d, of_g


def ours(model, *, accumulate, clip_norm, precision):
    optimizers = {name: torch.optim.SGD(model[name].parameters(), lr=0.2, momentum=0.5) for name in ("d", "g")}
    trainer = vd.Trainer(
        model, optimizers, accumulate=accumulate, clip_norm=clip_norm, precision=precision, device="cpu", progress=False,
        scaler_args={"init_scale": 4.0} if precision == "fp16" else None,
    )  # fmt: skip
    for epoch in trainer.epochs(2):
        for real, noise in epoch.train(data()):
            of_d, of_g = losses(trainer.model, real, noise)
            trainer.step(of_d(), optimizer="d")
            trainer.step(of_g(), optimizer=optimizers["g"])
    return trainer


def plain(model, *, accumulate, clip_norm, precision):
    optimizers = {name: torch.optim.SGD(model[name].parameters(), lr=0.2, momentum=0.5) for name in ("d", "g")}
    scalers = {name: torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=4.0) for name in optimizers}
    for _ in range(2):
        batches = data()
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            total = sum(len(real) for real, _ in window)
            grads = {"d": None, "g": None}
            for real, noise in window:
                for name, which in (("d", 0), ("g", 1)):
                    # In autocast; binary_cross_entropy_with_logits is computed in fp32 from outputs of the two networks.
                    with torch.autocast("cpu", dtype=torch.float16, enabled=precision == "fp16"):
                        wide = {k: _widened(model[k], precision) for k in model}
                        loss = losses(wide, real, noise)[which]()
                    loss = scalers[name].scale(loss * (len(real) / total))
                    new = torch.autograd.grad(loss, list(model[name].parameters()))
                    grads[name] = new if grads[name] is None else [a + b for a, b in zip(grads[name], new, strict=True)]
                    if real is window[-1][0]:  # the discriminator is updated before the generator's loss is computed
                        _apply(model[name], optimizers[name], scalers[name], grads[name], clip_norm)
    return model


def _widened(module, precision):
    return (lambda x: module(x).float()) if precision == "fp16" else module


def _apply(module, optimizer, scaler, grads, clip_norm):
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        parameter.grad = grad
    scaler.unscale_(optimizer)
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 5])
def test_every_update_is_that_of_the_plain_loop(accumulate, clip_norm, precision):
    model = gan()
    twin = copy.deepcopy(model)
    settings = {"accumulate": accumulate, "clip_norm": clip_norm, "precision": precision}
    trainer = ours(model, **settings)
    plain(twin, **settings)
    updates = 2 * 2 * (5 if accumulate == 1 else 1)  # two epochs, two optimizers
    assert trainer.progress.steps_done == updates
    close = {"rtol": 1e-5, "atol": 1e-6} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), **close)
        assert not torch.equal(parameter, gan().get_parameter(name))


def test_the_loss_of_one_leaves_nothing_in_the_window_of_the_other():
    model = gan()
    trainer = vd.Trainer(model, {"d": "sgd", "g": "sgd"}, lr=0.1, accumulate=2, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for real, noise in epoch.train(data()[:2]):
            _, of_g = losses(trainer.model, real, noise)
            trainer.step(of_g(), optimizer="g")
            if trainer.progress.micro_batches_done == 1:
                assert all(p.grad is None for p in model["d"].parameters())
                assert all(p.grad is not None for p in model["g"].parameters())
            break


def test_rows_have_the_learning_rate_and_norm_of_each():
    model = gan()
    optimizers = {"d": torch.optim.SGD(model["d"].parameters(), lr=0.1), "g": torch.optim.SGD(model["g"].parameters(), lr=0.2)}  # fmt: skip
    trainer = vd.Trainer(model, optimizers, clip_norm=1.0, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for real, noise in epoch.train(data()):
            of_d, of_g = losses(trainer.model, real, noise)
            trainer.step(of_d(), optimizer="d")
            trainer.step(of_g(), optimizer="g")
    row = trainer.result.metrics
    assert (row["lr"], row["lr/d"], row["lr/g"]) == (0.1, 0.1, 0.2)
    assert row["train/d/grad_norm"] > 0
    assert row["train/g/grad_norm"] > 0


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda m: {"d": "sgd", "q": "sgd"}, "no submodule 'q'"),
        (lambda m: {}, "holds no optimizer"),
        (lambda m: {"a": torch.optim.SGD(m.parameters(), lr=1), "b": torch.optim.SGD(m["d"].parameters(), lr=1)}, "hold the same parameter"),
    ],
)  # fmt: skip
def test_optimizers_that_cannot_be_are_refused(make, fragment):
    model = gan()
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        vd.Trainer(model, make(model), device="cpu")


def test_step_must_be_told_which_and_only_ones_own():
    model = gan()
    trainer = vd.Trainer(model, {"d": "sgd", "g": "sgd"}, lr=0.1, device="cpu", progress=False)
    other = torch.optim.SGD(model.parameters(), lr=1)
    for wrong, fragment in (
        (None, "was not told which"),
        ("h", "names no optimizer"),
        (other, "not this trainer's own"),
    ):
        for epoch in trainer.epochs(1):
            for real, noise in epoch.train(data()):
                with pytest.raises(vd.errors.ArgumentError, match=fragment):
                    trainer.step(losses(model, real, noise)[0](), optimizer=wrong)
                trainer.step(losses(model, real, noise)[0](), optimizer="d")
                break
            break


def test_optimizers_with_modes_are_told_and_evaluation_sees_their_averages():
    schedulefree = pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    twin = copy.deepcopy(model)
    batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(6)]
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.5)
    seen = []

    class Look(vd.Callback):
        def on_step_end(self, trainer):
            before = model.weight.clone()
            seen.append(trainer.evaluate([batches[0]])["loss"])
            assert torch.equal(before, model.weight)  # training goes on where it was

    trainer = vd.Trainer(model, optimizer, loss="mse", callbacks=[Look()], device="cpu", progress=False)
    result = trainer.fit(batches, [batches[0]], epochs=1)
    plain = schedulefree.SGDScheduleFree(twin.parameters(), lr=0.5)
    expected = []
    plain.train()
    for x, y in batches:
        F.mse_loss(twin(x), y).backward()
        plain.step()
        plain.zero_grad()
        kept = [p.detach().clone() for p in twin.parameters()]
        plain.eval()
        expected.append(F.mse_loss(twin(batches[0][0]), batches[0][1]).item())
        plain.train()
        with torch.no_grad():
            for p, k in zip(twin.parameters(), kept, strict=True):
                p.copy_(k)
    plain.eval()
    assert seen == pytest.approx(expected, rel=1e-6)
    assert result.metrics["val/loss"] == pytest.approx(expected[-1], rel=1e-6)
    assert torch.equal(model.weight, twin.weight)  # left in the mode that is for use


def test_each_optimizer_has_a_mean_loss_of_its_own():
    model = gan()
    trainer = vd.Trainer(model, {"d": "sgd", "g": "sgd"}, lr=0.0, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for real, _ in epoch.train(data()):
            trainer.step(model["d"](real).sum() * 0 + 1, optimizer="d")
            trainer.step(model["g"](real[:, :2]).sum() * 0 + 3, optimizer="g")
    row = trainer.result.metrics
    assert (row["train/d/loss"], row["train/g/loss"]) == (1.0, 3.0)
    assert "train/loss" not in row


def test_a_nan_in_the_loss_of_one_of_them_ends_the_run():
    model = gan()
    trainer = vd.Trainer(model, {"d": "sgd", "g": "sgd"}, lr=0.0, device="cpu", progress=False)
    with pytest.raises(vd.errors.NumericsError, match="loss became nan"):
        for epoch in trainer.epochs(1):
            for real, _ in epoch.train(data()):
                trainer.step(model["d"](real).sum() * float("nan"), optimizer="d")
