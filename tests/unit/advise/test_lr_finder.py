"""The range test: what the curve says, and that everything is as it was afterwards."""

from __future__ import annotations

import copy
import random
from functools import partial

import numpy
import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.advise.lr_curve import LRCurve
from velodrome.errors import ArgumentError, DataError
from velodrome.testing.tiny import tiny_classification, tiny_cnn, tiny_mlp


def model_with_everything():
    """Buffers that move (batch norm) and numbers that are drawn (dropout)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))


def state_of(model, optimizer, loader):
    """Return all that a test could move, as flat lists of comparable things."""
    found = {f"model {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": torch.as_tensor(value).clone() for name, value in values.items()}
    for index, group in enumerate(optimizer.state_dict()["param_groups"]):
        found[f"lr {index}"] = torch.as_tensor(group["lr"])
    found["torch rng"] = torch.get_rng_state()
    found["python rng"] = torch.tensor(random.getstate()[1])
    found["numpy rng"] = torch.from_numpy(numpy.random.get_state()[1].astype(numpy.int64))
    found |= {f"data {key}": torch.as_tensor(value) for key, value in loader.state_dict().items() if value is not None}
    found["training"] = torch.tensor(model.training)
    return found


def different(before, after):
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def trained_a_little():
    """A model, its Adam with moments, and a loader that stands within an epoch."""
    model, data = model_with_everything(), tiny_classification()
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters(), "lr": 1e-3}, {"params": [*model[1].parameters(), *model[4].parameters()]}],
        lr=2e-3,
    )
    loader = vd.DataLoader(data, 16, shuffle=True, seed=3)
    vd.fit(model, loader, optimizer=optimizer, loss="cross_entropy", steps=4, seed=5, progress=False)
    batches = iter(loader)
    next(batches)
    return model, optimizer, loader, batches


def test_weights_optimizer_random_numbers_and_position_are_put_back_exactly():
    model, optimizer, loader, batches = trained_a_little()
    before = state_of(model, optimizer, loader)
    curve = vd.find_lr(model, loader, optimizer=optimizer, loss="cross_entropy", steps=30, seed=1)
    assert len(curve.rates) > 5
    assert different(before, state_of(model, optimizer, loader)) == []
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(list(batches)) == 5  # 96 samples in batches of 16, one of which was taken


def test_without_putting_back_the_same_test_moves_nearly_everything():
    """The negative control: the comparison above would see it."""
    model, optimizer, loader, _ = trained_a_little()
    before = state_of(model, optimizer, loader)
    vd.fit(model, loader, optimizer=optimizer, loss="cross_entropy", steps=8, seed=1, progress=False)
    moved = different(before, state_of(model, optimizer, loader))
    for name in ("model 0.weight", "model 1.running_mean", "optimizer 0 exp_avg", "torch rng"):
        assert name in moved
    assert any(name.startswith("data ") for name in moved)


def test_a_run_after_the_test_is_the_run_without_it():
    data = tiny_classification()
    results = []
    for tests_first in (False, True):
        model = model_with_everything()
        if tests_first:
            vd.find_lr(model, data, optimizer="adam", loss="cross_entropy", steps=20, batch_size=16)
        vd.fit(model, data, optimizer="adam", loss="cross_entropy", epochs=2, batch_size=16, seed=0, progress=False)
        results.append([parameter.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *results))


def test_the_callback_leaves_its_trainer_as_it_was():
    model, data, finder = tiny_mlp(), tiny_classification(), vd.LRFinder(steps=15, highest=1.0)
    before = copy.deepcopy(model.state_dict())
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", callbacks=[finder], progress=False, seed=0)
    trainer.fit(data, steps=finder.steps, batch_size=16)
    assert len(finder.result.rates) == 15
    assert trainer.progress.steps_done == 0
    assert trainer.result.history == []
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "step" not in vars(trainer)


def test_a_fit_that_ends_before_the_range_says_that_higher_rates_were_not_tried():
    data = tiny_classification()
    for steps, words in ((30, "10 of 40 steps still to come"), (40, "the end of the range")):
        finder = vd.LRFinder(steps=40, lowest=1e-3, highest=1.0)
        trainer = vd.Trainer(tiny_mlp(), "sgd", loss="cross_entropy", callbacks=[finder], progress=False)
        trainer.fit(data, steps=steps, batch_size=16)
        assert words in finder.result.sentence


def test_rates_rise_by_the_same_factor_and_losses_are_those_before_each_update():
    data, model = tiny_classification(num_samples=16), tiny_mlp()
    curve = vd.find_lr(
        model, data, optimizer="sgd", loss="cross_entropy", lowest=1e-4, highest=1.0, steps=13, batch_size=16
    )
    assert curve.rates[0] == pytest.approx(1e-4)
    assert [b / a for a, b in zip(curve.rates, curve.rates[1:], strict=False)] == pytest.approx([10 ** (1 / 3)] * 12)
    by_hand, x, y = tiny_mlp(), *data
    for rate, loss in zip(curve.rates, curve.losses, strict=True):
        expected = nn.functional.cross_entropy(by_hand(x), y)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        by_hand.zero_grad()
        expected.backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= rate * parameter.grad


def test_losses_are_smoothed_and_corrected_for_the_beginning():
    curve = vd.find_lr(
        tiny_mlp(), tiny_classification(), optimizer="sgd", loss="cross_entropy", highest=0.1, steps=10, batch_size=32
    )
    mean, expected = 0.0, []
    for count, loss in enumerate(curve.losses, 1):
        mean = 0.95 * mean + 0.05 * loss
        expected.append(mean / (1 - 0.95**count))
    assert curve.smoothed == pytest.approx(expected)
    assert curve.smoothed[0] == pytest.approx(curve.losses[0])


def test_the_sweep_ends_when_the_loss_diverges():
    data = torch.randn(64, 4), torch.randn(64, 1)
    curve = vd.find_lr(nn.Linear(4, 1), data, optimizer="sgd", loss="mse", highest=1e6, steps=100, batch_size=64)
    assert curve.has_diverged
    assert len(curve.rates) < 100
    assert curve.rates[-1] > 0.5  # of a quadratic with curvature about 2, steps beyond 1 grow
    assert all(numpy.isfinite(curve.smoothed))


def test_where_the_loss_falls_fastest_just_before_it_diverges_the_suggestion_is_a_tenth_of_the_lowest():
    losses = (
        5.0,
        5.0,
        5.0,
        5.0,
        4.5,
        1.0,
        0.9,
        9.0,
    )  # four steps a decade; 5.0 -> 1.0 around 1e-2, the lowest a half decade above
    curve = LRCurve(tuple(10 ** (-3 + step / 4) for step in range(8)), losses, losses)
    assert curve.steepest == pytest.approx(10**-2)
    assert curve.suggestion == curve.lowest_tenth == pytest.approx(10**-2.5)
    assert curve.sentence.startswith(
        "lr 0.0032: the smaller one of where the loss falls fastest, 0.01, and a tenth of where it is lowest, 0.0032."
    )


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = tuple(10.0**exponent for exponent in range(-6, 2))
    losses = (5.0, 5.0, 5.0, 4.8, 3.0, 2.5, 2.4, 9.0)
    curve = LRCurve(rates, losses, losses)
    # Central differences: 4.8 -> 2.5 around 1e-2 is the steepest (2.3 over two decades), 5.0 -> 3.0 around 1e-3 is 2.0.
    assert curve.suggestion == curve.steepest == pytest.approx(1e-2)
    assert curve.lowest_tenth == pytest.approx(0.1)  # the lowest, 2.4, is at 1
    assert "0.01" in curve.sentence


def test_a_loss_that_never_falls_gives_no_suggestion():
    curve = LRCurve((1e-3, 1e-2, 1e-1), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert curve.suggestion is None
    assert curve.lowest_tenth is None
    assert "never fell" in curve.sentence


def test_parameter_groups_keep_their_proportions():
    model, seen = tiny_mlp(), []

    class Watch(vd.Callback):
        def on_step_end(self, trainer):
            seen.append([group["lr"] for group in trainer.optimizer.param_groups])

    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    )
    finder = vd.LRFinder(steps=10, lowest=1e-4, highest=1e-2)
    trainer = vd.Trainer(model, optimizer, loss="cross_entropy", callbacks=[Watch(), finder], progress=False)
    trainer.fit(tiny_classification(), steps=10, batch_size=16)
    assert [second / first for first, second in seen] == pytest.approx([2.0] * 10)


def test_the_curve_is_written_as_csv_and_as_a_picture(tmp_path):
    curve = vd.find_lr(
        tiny_mlp(), tiny_classification(), optimizer="sgd", loss="cross_entropy", steps=12, batch_size=16
    )
    curve.to_csv(tmp_path / "lr.csv")
    rows = (tmp_path / "lr.csv").read_text().splitlines()
    assert rows[0] == "lr,loss,smoothed_loss"
    assert len(rows) == 1 + len(curve.rates)
    assert [float(each) for each in rows[1].split(",")] == [curve.rates[0], curve.losses[0], curve.smoothed[0]]
    pytest.importorskip("matplotlib")
    curve.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="nothing to draw"):
        LRCurve((), (), ()).plot()


def test_frozen_parameters_and_accumulation_are_as_they_were():
    model = tiny_cnn()
    data = torch.randn(32, 1, 8, 8), torch.arange(32) % 3
    curve = vd.find_lr(
        model,
        data,
        optimizer="adam",
        loss="cross_entropy",
        steps=10,
        batch_size=8,
        accumulate=2,
        freeze=["0"],
        highest=0.1,
    )
    assert len(curve.rates) == 10
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "0 < lowest < highest"),
        ({"lowest": 0}, "0 < lowest < highest"),
        ({"steps": 5}, "at least 10"),
        ({"run_dir": "runs/x"}, "writes nothing"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        vd.find_lr(tiny_mlp(), tiny_classification(), loss="cross_entropy", batch_size=16, **arguments)


@pytest.mark.parametrize(("name", "value"), [("smoothing", 1.0), ("smoothing", -0.1), ("diverged_at", 1.0)])
def test_wrong_settings_of_the_callback_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        vd.LRFinder(**{name: value})


@pytest.mark.parametrize("find", [vd.find_lr, vd.find_batch_size])
def test_an_unknown_argument_is_refused_by_name(find):
    with pytest.raises(
        ArgumentError,
        match=r"clip_nrm=1 is an argument of neither the finder nor Trainer\. Did you mean \"clip_norm\"\?",
    ):
        find(tiny_mlp(), tiny_classification(), loss="cross_entropy", clip_nrm=1)


@pytest.mark.parametrize(
    "find", [partial(vd.find_lr, batch_size=8), partial(vd.find_batch_size, seconds_each=0.01, largest=16)]
)
def test_what_decides_what_is_written_may_be_none(find):
    nothing = {"run_dir": None, "checkpoint": None, "loggers": None, "progress": False}
    assert find(tiny_mlp(), tiny_classification(), loss="cross_entropy", **nothing) is not None


def test_an_iterator_is_refused_because_it_would_be_used_up():
    batches = iter([tiny_classification()])
    with pytest.raises(DataError, match="used? up"):
        vd.find_lr(tiny_mlp(), batches, loss="cross_entropy")
    assert next(batches) is not None


def test_a_trainer_that_writes_or_schedules_is_refused(tmp_path):
    data = tiny_classification()
    trainer = vd.Trainer(
        tiny_mlp(),
        "sgd",
        lr=0.1,
        loss="cross_entropy",
        callbacks=[vd.LRFinder()],
        progress=False,
        run_dir=tmp_path / "run",
    )
    with pytest.raises(ArgumentError, match="no run to keep"):
        trainer.fit(data, steps=10, batch_size=16)
    trainer = vd.Trainer(
        tiny_mlp(), "sgd", lr=0.1, loss="cross_entropy", callbacks=[vd.LRFinder()], progress=False, scheduler="cosine"
    )
    with pytest.raises(ArgumentError, match="has a scheduler"):
        trainer.fit(data, steps=10, batch_size=16)
    a, b = tiny_mlp(), tiny_mlp()
    both = {"a": torch.optim.SGD(a.parameters(), lr=0.1), "b": torch.optim.SGD(b.parameters(), lr=0.1)}
    trainer = vd.Trainer(
        nn.ModuleDict({"a": a, "b": b}), both, step_fn=lambda model, batch: model["a"](batch[0]).sum(),
        callbacks=[vd.LRFinder()], progress=False,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="2 optimizers"):
        trainer.fit(data, steps=10, batch_size=16)


def lost_after(num_steps, value=float("nan")):
    """A loss that is `value` from one step on."""
    calls = [0]

    def loss(output, target):
        calls[0] += 1
        return nn.functional.cross_entropy(output, target) * (value if calls[0] > num_steps else 1)

    return loss


@pytest.mark.parametrize(
    ("loss", "step", "words"),
    [
        (lost_after(0), 1, "The loss was NaN at step 1, before any update"),
        (lost_after(0, float("inf")), 1, "The loss was infinite at step 1"),
        (lost_after(9), 10, "the loss was NaN at step 10"),
        (lost_after(29), 30, "the loss was NaN at step 30"),
    ],
)
def test_a_loss_that_is_no_number_is_named_and_is_divergence(loss, step, words):
    data = torch.randn(64, 8), torch.randint(0, 3, (64,))
    curve = vd.find_lr(tiny_mlp(), data, loss=loss, batch_size=16)
    assert curve.not_finite_at == step
    assert len(curve.rates) == step - 1
    assert curve.has_diverged
    assert curve.suggestion is None  # at 1e-7 to 2e-5 nothing was learned: what fell was noise
    assert words in curve.sentence


@pytest.mark.parametrize("value", [1.0, 0.3])
def test_a_constant_loss_never_fell(value):
    curve = vd.find_lr(
        tiny_mlp(), tiny_classification(), loss=lambda output, target: (output * 0).sum() + value, batch_size=16
    )
    assert len(curve.rates) == 100
    assert not curve.has_diverged
    assert curve.suggestion is None
    assert "never fell" in curve.sentence


def test_a_loss_that_falls_has_a_suggestion():
    """The negative control of the two above."""
    curve = vd.find_lr(tiny_mlp(), tiny_classification(), loss="cross_entropy", batch_size=16)
    assert curve.suggestion is not None
    assert curve.not_finite_at is None


def test_gradients_and_strides_are_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    data = torch.randn(32, 3, 4, 4), torch.arange(32) % 4
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    copies = [gradient.clone() for gradient in gradients]
    vd.find_lr(model, data, loss="cross_entropy", batch_size=16, steps=10, channels_last=True)
    assert model[0].weight.is_contiguous()
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(map(torch.equal, gradients, copies))
    with pytest.raises(DataError, match="iterator"):
        vd.find_lr(model, iter([data]), loss="cross_entropy")
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("arguments", [{"lowest": "a"}, {"highest": None}])
def test_a_rate_that_is_no_number_is_refused(arguments):
    with pytest.raises(ArgumentError, match="It must be a number"):
        vd.find_lr(tiny_mlp(), tiny_classification(), loss="cross_entropy", batch_size=16, **arguments)
