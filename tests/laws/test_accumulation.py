"""Law 2: micro-batches of unequal size give the gradient, the clip norm and the loss of the one big batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from support.gradients import GradientTaker, batches_of, problem

CLOSE = {"rtol": 1e-12, "atol": 0.0}


def train(model, data, *, accumulate, loss="cross_entropy", clip_norm=None, step_fn=None, **arguments):
    optimizer = GradientTaker(model.parameters())
    trainer = vd.Trainer(
        model,
        optimizer,
        loss=None if step_fn else loss,
        step_fn=step_fn,
        accumulate=accumulate,
        clip_norm=clip_norm,
        device="cpu",
        progress=False,
        **arguments,
    )
    result = trainer.fit(data, epochs=1)
    return optimizer.seen, result, trainer


def equal(seen, expected):
    assert len(seen) == len(expected)
    for update, wanted in zip(seen, expected, strict=True):
        for gradient, other in zip(update, wanted, strict=True):
            torch.testing.assert_close(gradient, other, **CLOSE)


@pytest.mark.parametrize("clip_norm", [None, 1e-2, 1e3])
def test_unequal_micro_batches_give_the_gradient_of_the_big_batch(clip_norm):
    model, x, y = problem(37)
    twin = copy.deepcopy(model)
    # windows of four: 7 + 1 + 9 + 3 = 20 samples, then the short last one, 12 + 5 = 17
    seen, result, trainer = train(model, batches_of(x, y, [7, 1, 9, 3, 12, 5]), accumulate=4, clip_norm=clip_norm)
    wanted, big, _ = train(twin, batches_of(x, y, [20, 17]), accumulate=1, clip_norm=clip_norm)
    equal(seen, wanted)
    assert trainer.progress.steps_done == 2
    assert trainer.progress.micro_batches_done == 6
    assert result.metrics["train/loss"] == pytest.approx(big.metrics["train/loss"], rel=1e-12)
    if clip_norm is not None:
        assert result.metrics["train/grad_norm"] == pytest.approx(big.metrics["train/grad_norm"], rel=1e-12)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_mean_of_micro_batch_means_is_another_gradient():
    """The negative control: what most loops do, each micro-batch's mean divided by their number, differs."""
    model, x, y = problem(20)
    twin = copy.deepcopy(model)
    for xs, ys in batches_of(x, y, [7, 1, 9, 3]):
        (F.cross_entropy(twin(xs), ys) / 4).backward()
    seen, _, _ = train(model, batches_of(x, y, [7, 1, 9, 3]), accumulate=4)
    wrong = [p.grad for p in twin.parameters()]
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(seen[0], wrong, strict=True))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_token_weights_give_the_mean_over_tokens(as_tensor):
    model, x, y = problem(24)
    model = nn.Sequential(*model)
    twin = copy.deepcopy(model)
    keep = torch.arange(24) % 5 != 0  # some targets are masked
    keep[6:12] = False  # a whole micro-batch has none

    def loss_of(model, batch):
        xs, ys, ks = batch
        losses = F.cross_entropy(model(xs), ys, reduction="none")
        items = ks.sum()
        # the mean of no items is NaN here, as in torch
        return {"loss": losses[ks].mean(), "items": items if as_tensor else int(items)}

    data = list(zip(x.split(6), y.split(6), keep.split(6), strict=True))
    seen, result, _ = train(model, data, accumulate=4, step_fn=loss_of)
    loss = F.cross_entropy(twin(x)[keep], y[keep])
    loss.backward()
    equal(seen, [[p.grad for p in twin.parameters()]])
    assert result.metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("arguments", [{"ignore_index": 1}, {"weight": [0.2, 3.0, 1.0]}])
def test_losses_with_a_divisor_of_their_own_are_weighted_with_it(arguments):
    model, x, y = problem(30)
    model, x = model.float(), x.float()
    twin = copy.deepcopy(model).double()
    trained = copy.deepcopy(twin)
    weight = {"weight": torch.tensor(arguments["weight"]).double()} if "weight" in arguments else arguments
    loss = nn.CrossEntropyLoss(**weight)
    seen, _, _ = train(trained, batches_of(x.double(), y, [3, 9, 11, 7]), accumulate=4, loss=loss)
    loss(twin(x.double()), y).backward()
    equal(seen, [[p.grad for p in twin.parameters()]])


def test_micro_batch_cuts_the_global_batch_into_equal_parts():
    model, x, y = problem(37)
    twin = copy.deepcopy(model)
    arguments = {"loss": "cross_entropy", "device": "cpu", "progress": False, "seed": 5}
    small = vd.Trainer(model, GradientTaker(model.parameters()), **arguments)
    small.fit((x, y), epochs=2, batch_size=16, micro_batch=4)
    big = vd.Trainer(twin, GradientTaker(twin.parameters()), **arguments)
    big.fit((x, y), epochs=2, batch_size=16)
    equal(small.optimizer.seen, big.optimizer.seen)
    assert small.progress.steps_done == big.progress.steps_done == 6  # 16 + 16 + 5, twice


def test_a_loop_of_ones_own_that_is_left_early_makes_its_short_update():
    model, x, y = problem(20)
    twin = copy.deepcopy(model)
    trainer = vd.Trainer(model, GradientTaker(model.parameters()), accumulate=4, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for index, (xs, ys) in enumerate(epoch.train(batches_of(x, y, [7, 1, 9, 3]))):
            trainer.step(F.cross_entropy(trainer.model(xs), ys))
            if index == 1:
                break
    F.cross_entropy(twin(x[:8]), y[:8]).backward()
    equal(trainer.optimizer.seen, [[p.grad for p in twin.parameters()]])
    assert trainer.progress.steps_done == 1


def test_clip_value_acts_on_the_divided_gradient():
    model, x, y = problem(20)
    twin = copy.deepcopy(model)
    optimizer = GradientTaker(model.parameters())
    trainer = vd.Trainer(
        model, optimizer, loss="cross_entropy", accumulate=4, clip_value=0.01, device="cpu", progress=False
    )
    trainer.fit(batches_of(x, y, [7, 1, 9, 3]), epochs=1)
    F.cross_entropy(twin(x), y).backward()
    equal(optimizer.seen, [[p.grad.clamp(-0.01, 0.01) for p in twin.parameters()]])


def test_budgets_and_callbacks_count_updates_not_micro_batches():
    model, x, y = problem(32)
    steps = []

    class Count(vd.Callback):
        def on_step_end(self, trainer):
            steps.append(trainer.progress.steps_done)

    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", accumulate=4, device="cpu", callbacks=[Count()], progress=False)  # fmt: skip
    result = trainer.fit(batches_of(x, y, [4] * 8), steps=3)
    assert steps == [1, 2, 3]
    assert result.stop_reason is vd.StopReason.STEPS
    assert trainer.progress.micro_batches_done == 12


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"accumulate": 0}, "whole number of at least 1"),
        ({"accumulate": 2.5}, "accumulate=2.5"),
        ({"clip_norm": 0}, "clip_norm=0 is not a limit"),
        ({"clip_value": float("nan")}, "clip_value=nan"),
    ],
)
def test_impossible_windows_and_limits_are_refused(arguments, fragment):
    model, _, _ = problem()
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", device="cpu", **arguments)


def test_a_micro_batch_that_does_not_divide_is_refused_with_those_that_do():
    model, x, y = problem(250)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", device="cpu", progress=False)
    with pytest.raises(vd.errors.ArgumentError, match=r"250 % 24 = 10.*Use 10 or 25"):
        trainer.fit((x, y), epochs=1, batch_size=250, micro_batch=24)
    with pytest.raises(vd.errors.ArgumentError, match="without batch_size"):
        trainer.fit((x, y), epochs=1, micro_batch=24)
    for sizes, fragment in (
        ({"batch_size": 0, "micro_batch": 4}, "batch_size=0 is not a batch size"),
        ({"batch_size": -8, "micro_batch": 4}, "batch_size=-8 is not a batch size"),
        ({"batch_size": 8.0, "micro_batch": 4}, "batch_size=8.0 is not"),
        ({"batch_size": 8, "micro_batch": 0}, "micro_batch=0 is not"),
        ({"batch_size": 8, "eval_batch_size": 0}, "batch_size=0 is not"),
    ):
        with pytest.raises(vd.errors.ArgumentError, match=fragment):
            trainer.fit((x, y), (x, y), epochs=1, **sizes)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", accumulate=3, device="cpu", progress=False)
    with pytest.raises(vd.errors.ArgumentError, match="which makes 10"):
        trainer.fit((x, y), epochs=1, batch_size=250, micro_batch=25)


def test_norms_layer_by_layer_are_recorded():
    model, x, y = problem(20)
    twin = copy.deepcopy(model)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", grad_norms=True, device="cpu", progress=False)
    row = trainer.fit([(x, y)], epochs=1).metrics
    F.cross_entropy(twin(x), y).backward()
    first = torch.cat([twin[0].weight.grad.flatten(), twin[0].bias.grad]).norm().item()
    last = torch.cat([twin[2].weight.grad.flatten(), twin[2].bias.grad]).norm().item()
    assert row["train/grad_norm/0"] == pytest.approx(first, rel=1e-12)
    assert row["train/grad_norm/2"] == pytest.approx(last, rel=1e-12)
    assert row["train/grad_norm"] == pytest.approx((first**2 + last**2) ** 0.5, rel=1e-12)


def test_micro_batch_holds_for_its_own_fit_only():
    model, x, y = problem(64)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", device="cpu", progress=False)
    for arguments, steps in (({"micro_batch": 8}, 2), ({}, 4), ({"micro_batch": 16}, 6)):
        trainer.fit((x, y), epochs=trainer.progress.epochs_done + 1, batch_size=32, **arguments)
        assert trainer.progress.steps_done == steps
    for epoch in trainer.epochs(4):  # two batches of one's own
        for xs, ys in epoch.train([(x[:32], y[:32]), (x[32:], y[32:])]):
            trainer.step(F.cross_entropy(trainer.model(xs), ys))
    assert trainer.progress.steps_done == 8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_windows_without_any_item_change_nothing(accumulate, precision):
    model, x, y = problem(24)
    model, x = model.float(), x.float()
    before = copy.deepcopy(model.state_dict())
    trainer = vd.Trainer(model, "sgd", lr=0.1, accumulate=accumulate, precision=precision, clip_norm=1.0, device="cpu", progress=False)  # fmt: skip
    for epoch in trainer.epochs(1):
        for xs, ys in epoch.train(batches_of(x, y, [6, 6, 6, 6])):
            trainer.step(F.cross_entropy(trainer.model(xs)[:0], ys[:0]), items=0)  # the mean of nothing: NaN
    assert trainer.progress.steps_done == 4 // accumulate
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for epoch in trainer.epochs(2):  # and the run can go on
        for xs, ys in epoch.train(batches_of(x, y, [6, 6, 6, 6])):
            trainer.step(F.cross_entropy(trainer.model(xs), ys))
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_masked_mean_with_a_clamped_count_may_have_no_items():
    model, x, y = problem(24)
    twin = copy.deepcopy(model)
    keep = (torch.arange(24) % 3 != 0).double()
    keep[:12] = 0

    def masked(model, batch):
        xs, ys, ks = batch
        losses = F.cross_entropy(model(xs), ys, reduction="none")
        return {"loss": (losses * ks).sum() / ks.sum().clamp(min=1), "items": ks.sum()}

    data = list(zip(x.split(6), y.split(6), keep.split(6), strict=True))
    seen, _, _ = train(model, data, accumulate=4, step_fn=masked)
    losses = F.cross_entropy(twin(x), y, reduction="none")
    ((losses * keep).sum() / keep.sum()).backward()
    equal(seen, [[p.grad for p in twin.parameters()]])


@pytest.mark.parametrize(
    ("items", "fragment"),
    [
        (-1, "items=-1 is no number of items"),
        (True, "items=True"),
        ("many", "items='many'"),
        (float("nan"), "items=nan"),
        (torch.tensor([1, 2]), r"shape \(2,\).*sum"),
        (torch.tensor(True), "torch.bool"),
    ],
)
def test_items_that_are_no_number_are_refused(items, fragment):
    model, x, y = problem(12)
    trainer = vd.Trainer(model, "sgd", lr=0.1, accumulate=2, device="cpu", progress=False)
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        for epoch in trainer.epochs(1):
            for xs, ys in epoch.train(batches_of(x, y, [6, 6])):
                trainer.step(F.cross_entropy(trainer.model(xs), ys), items=items)


def test_an_iterator_kept_in_a_variable_ends_with_its_epoch():
    model, x, y = problem(20)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", accumulate=4, device="cpu", progress=False)
    for epoch in trainer.epochs(2):
        batches = epoch.train(batches_of(x, y, [7, 1, 9, 3]))
        for batch in batches:
            trainer.step(trainer.forward(batch).loss)
            break
        for batch in epoch.evaluate([(x, y)]):
            trainer.measure(trainer.forward(batch))
    assert trainer.progress.steps_done == 2
    assert [{"train/loss", "val/loss"} <= row.keys() for row in trainer.result.history] == [True, True]


def test_a_run_that_is_left_in_a_window_keeps_no_gradient():
    model, x, y = problem(20)
    trainer = vd.Trainer(model, "sgd", lr=0.1, accumulate=4, device="cpu", progress=False)

    def leave():
        for epoch in trainer.epochs(1):
            for xs, ys in epoch.train(batches_of(x, y, [7, 1, 9, 3])):
                trainer.step(F.cross_entropy(trainer.model(xs), ys))
                return

    leave()
    assert all(p.grad is None for p in model.parameters())
    assert trainer.result.stop_reason is vd.StopReason.LEFT
