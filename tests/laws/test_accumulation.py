"""Law 2: micro-batches of unequal size give the gradient, the clip norm and the loss of the one big batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd

CLOSE = {"rtol": 1e-12, "atol": 0.0}


class GradientTaker(torch.optim.SGD):
    """SGD that keeps what it was given."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.9)
        self.seen: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(closure)


def problem(samples: int = 37):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (samples,), generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, x, y


def batches_of(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


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
