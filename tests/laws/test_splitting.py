"""Law: a batch that went through the model in parts, because memory ran out, gives the numbers of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from support.gradients import GradientTaker, batches_of, problem
from velodrome.testing.memory import MemoryLimit

CLOSE = {"rtol": 1e-12, "atol": 1e-15}
PLACES = ["forward", "backward"]


class Limited(nn.Module):
    """A network with a limit in front of it; whatever else it is called with passes."""

    def __init__(self, network: nn.Module, limit: int | None, *, where: str = "forward") -> None:
        super().__init__()
        self.network = network
        self.limit = MemoryLimit(limit, where=where, in_evaluation=limit)

    def forward(self, x: torch.Tensor, *others: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        for other in (*others, *named.values()):
            x = x + other
        # Behind the first weights: their gradients are made when the limit's backward pass fails, or not at all.
        return self.network[1:](self.limit(self.network[0](x)))


def train(
    network, data, limit, *, where="forward", step_fn=None, loss="cross_entropy", epochs=1, val=None, **arguments
):
    model = Limited(copy.deepcopy(network), limit, where=where)
    optimizer = GradientTaker(model.parameters())
    trainer = vd.Trainer(
        model,
        optimizer,
        loss=None if step_fn else loss,
        step_fn=step_fn,
        device="cpu",
        progress=False,
        on_oom="split",
        **arguments,
    )
    result = trainer.fit(data, val, epochs=epochs)
    return optimizer.seen, result, trainer


def check_equal(network, data, limit, *, where="forward", **arguments: Any):
    """Train with and without a limit, and compare gradients, rows and weights."""
    split, row, trainer = train(network, data, limit, where=where, **arguments)
    whole, wanted, other = train(network, data, None, **arguments)
    assert len(split) == len(whole) > 0
    for update, expected in zip(split, whole, strict=True):
        for gradient, other_gradient in zip(update, expected, strict=True):
            torch.testing.assert_close(gradient, other_gradient, **CLOSE)
    assert max(trainer.model.limit.sizes) > limit  # it did run out
    for ours, theirs in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    for name, value in wanted.metrics.items():
        if "/" in name:
            assert row.metrics[name] == pytest.approx(value, rel=1e-12), name
    return trainer


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [1, 3, 8])
def test_parts_give_gradients_loss_and_metrics_of_the_whole_batch(limit, accumulate, where):
    network, x, y = problem(37)
    trainer = check_equal(
        network,
        batches_of(x, y, [7, 1, 9, 3, 12, 5]),
        limit,
        where=where,
        accumulate=accumulate,
        metrics=["accuracy"],
        clip_norm=0.1,
        val=[(x, y)],
    )
    # Halves of what was tried: 12 -> 6 (fits 8), 7 -> 4 -> 2 (fits 3), 7 -> 4 -> 2 -> 1.
    assert trainer._engine.part_sizes["train"] == {8: 5, 3: 2, 1: 1}[limit]


def test_negative_control_the_mean_of_the_parts_means_is_another_gradient():
    network, x, y = problem(7)
    seen, _, _ = train(network, [(x, y)], 4)
    for part, labels in batches_of(x, y, [4, 3]):
        (F.cross_entropy(network(part), labels) / 2).backward()
    wrong = [p.grad for p in network.parameters()]
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(seen[0], wrong, strict=True))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("arguments", [{"ignore_index": 1}, {"weight": [0.2, 3.0, 1.0]}, {"label_smoothing": 0.1}])
def test_losses_with_a_divisor_of_their_own_are_weighted_with_it(arguments, where):
    network, x, y = problem(30)
    y[:4] = 1  # a part of which everything is ignored
    loss = nn.CrossEntropyLoss(**{k: torch.tensor(v).double() if k == "weight" else v for k, v in arguments.items()})
    check_equal(network, batches_of(x, y, [16, 14]), 4, where=where, loss=loss)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_step_fn_with_items_is_weighted_with_them(as_tensor, accumulate, where):
    network, x, y = problem(24)
    keep = torch.arange(24) % 5 != 0
    keep[4:8] = False  # a whole part has none

    def masked(model, batch):
        xs, ys, ks = batch
        output, items = model(xs), ks.sum()
        loss = F.cross_entropy(output, ys, reduction="none")[ks].mean()  # NaN for no items
        return {"loss": loss, "items": items if as_tensor else int(items), "output": output[ks], "target": ys[ks]}

    data = list(zip(x.split(12), y.split(12), keep.split(12), strict=True))
    check_equal(network, data, 4, where=where, step_fn=masked, accumulate=accumulate, metrics=["accuracy"])


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", ["dict", "two inputs", "nested", "with a number"])
def test_batches_of_every_shape_are_cut(kind, where):
    network, x, y = problem(20)
    shapes = {
        "dict": [{"x": x[:10], "label": y[:10]}, {"x": x[10:], "label": y[10:]}],
        "two inputs": [(x[:10], 2 * x[:10], y[:10]), (x[10:], 2 * x[10:], y[10:])],
        "nested": [((x[:10], x[:10]), y[:10]), ((x[10:], x[10:]), y[10:])],
        "with a number": [(x[:10], torch.tensor(2.0), y[:10]), (x[10:], torch.tensor(1.0), y[10:])],
    }
    check_equal(network, shapes[kind], 3, where=where)


@pytest.mark.parametrize("where", PLACES)
def test_a_model_that_returns_its_loss_is_weighted_by_samples(where):
    network, x, y = problem(19)

    class WithLoss(Limited):
        def forward(self, x, y):
            return {"loss": F.cross_entropy(super().forward(x), y)}

    seen = []
    for limit in (None, 4):
        model = WithLoss(copy.deepcopy(network), limit, where=where)
        optimizer = GradientTaker(model.parameters())
        trainer = vd.Trainer(model, optimizer, device="cpu", progress=False, on_oom="split")
        trainer.fit(batches_of(x, y, [11, 8]), epochs=1)
        seen.append(optimizer.seen)
    for a, b in zip(*seen, strict=True):
        for ours, theirs in zip(a, b, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("where", PLACES)
def test_a_penalty_added_to_the_loss_once_the_size_is_known(where):
    network, x, y = problem(16)
    seen = []
    for limit in (None, 4):
        model = Limited(copy.deepcopy(network), limit, where=where)
        optimizer = GradientTaker(model.parameters())
        trainer = vd.Trainer(model, optimizer, loss="cross_entropy", device="cpu", progress=False, on_oom="split")
        for epoch in trainer.epochs(2):
            for batch in epoch.train([(x, y)]):
                outcome = trainer.forward(batch)
                penalty = sum(p.square().sum() for p in trainer.model.parameters()) if epoch.index else 0.0
                trainer.step(outcome.loss if not epoch.index else outcome.loss + 0.1 * penalty)
        seen.append(optimizer.seen)
    for a, b in zip(*seen, strict=True):
        for ours, theirs in zip(a, b, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("where", PLACES)
def test_two_optimizers_get_their_own_gradients(where):
    network, x, y = problem(16)
    seen = []
    for limit in (None, 4):
        model = Limited(copy.deepcopy(network), limit, where=where)
        optimizers = {
            "body": GradientTaker(model.network[0].parameters()),
            "head": GradientTaker(model.network[2].parameters()),
        }
        trainer = vd.Trainer(
            model, optimizers, loss="cross_entropy", device="cpu", progress=False, on_oom="split", accumulate=2
        )
        for epoch in trainer.epochs(1):
            for batch in epoch.train(batches_of(x, y, [5, 6, 5])):
                for name in ("body", "head"):
                    outcome = trainer.forward(batch)
                    trainer.step(outcome.loss, items=outcome.items, optimizer=name)
        seen.append([each.seen for each in optimizers.values()])
    for a, b in zip(*seen, strict=True):
        assert len(a) == len(b) == 2
        for ours, theirs in zip(a, b, strict=True):
            for gradient, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(gradient, other, **CLOSE)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    "switches",
    [
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"ema": 0.9},
        {"scheduler": "cosine"},
        {"clip_value": 0.01, "grad_norms": True},
        {"gradient_checkpointing": ["network.1"]},
    ],
    ids=lambda switches: "-".join(switches),
)
def test_every_switch_goes_together_with_it(switches, where):
    network, x, y = problem(32)
    network, x = network.float(), x.float()
    weights = []
    for limit in (None, 4):
        _, result, trainer = train(
            network, batches_of(x, y, [16, 16]), limit, where=where, epochs=2, accumulate=2, **switches
        )
        assert result.metrics.get("skipped_steps", 0) == 0
        with trainer.averaging.applied() if "ema" in switches else torch.no_grad():
            weights.append([p.detach().clone() for p in trainer.model.parameters()])
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if "precision" in switches else {"rtol": 1e-5, "atol": 1e-6}
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_an_overflow_of_fp16_in_one_part_skips_the_update():
    network, x, y = problem(16)
    network, x = network.float(), x.float()
    x[9] = 1e5  # overflows fp16 in the third part
    before = copy.deepcopy(network.state_dict())
    _, result, trainer = train(network, [(x, y)], 4, precision="fp16")
    assert result.metrics["skipped_steps"] == 1
    assert all(torch.equal(before[name], value) for name, value in trainer.model.network.state_dict().items())


def test_sparse_gradients_are_summed():
    torch.manual_seed(0)
    table = nn.EmbeddingBag(10, 4, sparse=True, mode="sum").double()
    tokens, y = torch.randint(0, 10, (12, 3)), torch.randint(0, 4, (12,))
    weights = []
    for limit in (None, 5):
        model = nn.Sequential(copy.deepcopy(table), MemoryLimit(limit))
        trainer = vd.Trainer(
            model, torch.optim.SGD(model.parameters(), lr=0.1), loss="cross_entropy", accumulate=2, device="cpu", progress=False,
            on_oom="split",
        )  # fmt: skip
        trainer.fit([(tokens[:8], y[:8]), (tokens[8:], y[8:])], epochs=2)
        weights.append(model[0].weight.detach().clone())
    torch.testing.assert_close(*weights, **CLOSE)


def test_hooks_on_gradients_are_called_once_a_batch_with_the_whole_gradient():
    network, x, y = problem(12)
    model = Limited(network, 3)
    seen = []
    model.network[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    trainer = vd.Trainer(model, "sgd", lr=0.0, loss="cross_entropy", device="cpu", progress=False, on_oom="split")
    trainer.fit([(x, y)], epochs=1)
    twin = copy.deepcopy(network)
    F.cross_entropy(twin(x), y).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], twin[0].weight.grad, **CLOSE)


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_evaluation_and_prediction_give_what_they_give_whole(limit):
    network, x, y = problem(23)
    y[3] = -100
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    answers = []
    for fits in (None, limit):
        model = Limited(copy.deepcopy(network), fits)
        trainer = vd.Trainer(model, None, loss=loss, metrics=["accuracy"], device="cpu", progress=False, on_oom="split")
        answers.append((trainer.evaluate((x, y), batch_size=10), trainer.predict((x, y), batch_size=10)))
    assert answers[1][0] == pytest.approx(answers[0][0], rel=1e-12)
    torch.testing.assert_close(answers[1][1], answers[0][1], **CLOSE)
