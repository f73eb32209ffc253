"""Averages of weights: the numbers, which buffers are averaged, and that the raw weights come back bit for bit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from velodrome.averages import EMA, SWA, find_average
from velodrome.errors import ArgumentError
from velodrome.step.averaging import NO_AVERAGING, Averaging


@dataclass
class Counts:
    steps_done: int = 0
    epochs_done: int = 0


def one_weight(value=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def with_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


class Driver:
    """Sets weights by hand and tells the average, as a trainer does."""

    def __init__(self, model, rule, *, epochs=None, steps=None):
        self.model, self.counts = model, Counts()
        self.averaging = Averaging(model, rule, self.counts)
        self.averaging.begin(epochs=epochs, steps=steps)

    def update(self, *values):
        for value in values:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(value)
            self.counts.steps_done += 1
            self.averaging.after_update()
        return self

    def end_epoch(self):
        is_stale = self.averaging.after_epoch(self.counts.epochs_done + 1)
        self.counts.epochs_done += 1
        return is_stale

    @property
    def mean(self):
        return self.averaging.state_dict()["weight"].item()


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_ema_after_three_updates():
    # 8 at first; then 0.5 * 8 + 0.5 * 4 = 6; then 0.5 * 6 + 0.5 * 2 = 4
    assert Driver(one_weight(), EMA(0.5)).update(8, 4, 2).mean == 4


def test_ema_every_second_update_after_a_start():
    # updates 3 and 5 are averaged: 30, then 0.5 * 30 + 0.5 * 50 = 40
    driver = Driver(one_weight(), EMA(0.5, every=2, start=1)).update(10, 20)
    assert driver.averaging.num_averaged == 0
    assert driver.update(30, 40, 50, 60).mean == 40


def test_ema_that_starts_after_an_epoch():
    driver = Driver(one_weight(), EMA(0.5, every="1 step", start="1 epoch")).update(8)
    driver.end_epoch()
    assert driver.update(4, 2).mean == 3


def test_ema_warmup_begins_with_a_smaller_decay():
    # the second averaging has decay (1 + 1) / (10 + 1) = 2 / 11: 2/11 * 11 + 9/11 * 0 = 2
    assert Driver(one_weight(), EMA(0.9, warmup=True)).update(11, 0).mean == pytest.approx(2)
    # and never a larger one than asked for
    assert Driver(one_weight(), EMA(0.1, warmup=True)).update(10, 0).mean == pytest.approx(1)


def test_swa_is_the_plain_mean_at_the_ends_of_epochs():
    driver = Driver(one_weight(), SWA(start=1))
    for value in (100, 1, 2, 6):
        driver.update(50, value).end_epoch()
    assert driver.mean == pytest.approx(3)  # (1 + 2 + 6) / 3
    assert driver.averaging.num_averaged == 3


def test_swa_every_second_epoch():
    driver = Driver(one_weight(), SWA(start=0, every="2 epochs"))
    for value in (1, 2, 3, 4):
        driver.update(value).end_epoch()
    assert driver.mean == pytest.approx(3)  # (2 + 4) / 2


def test_an_epoch_is_averaged_once_however_often_its_end_is_told():
    driver = Driver(one_weight(), SWA(start=0)).update(1)
    driver.averaging.after_epoch(1)
    driver.end_epoch()
    assert driver.averaging.num_averaged == 1


@pytest.mark.parametrize(
    ("budget", "start"),
    [
        ({"epochs": 4}, (0, 3)),
        ({"epochs": 20}, (0, 15)),
        ({"epochs": 1}, (0, 0)),  # the last epoch at least
        ({"steps": 100}, (75, 0)),
        ({"epochs": 10, "steps": 100}, (0, 8)),
    ],
)
def test_swa_takes_a_share_of_the_run(budget, start):
    assert SWA().find_start(**{"epochs": None, "steps": None, **budget}) == start


@pytest.mark.parametrize("rule", [EMA(0.9), SWA(start=0)], ids=["ema", "swa"])
def test_equal_to_torchs_averaged_model_driven_by_hand(rule):
    model = with_batch_norm()
    function = get_ema_multi_avg_fn(0.9) if rule.kind == "ema" else get_swa_multi_avg_fn()
    theirs = AveragedModel(model, multi_avg_fn=function)
    driver = Driver(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        theirs.update_parameters(model)
        driver.counts.steps_done += 1
        driver.averaging.after_update()
        driver.end_epoch()
    for name, mean in driver.averaging.named_parameters():
        assert torch.equal(mean, theirs.module.get_parameter(name))
    assert not torch.equal(dict(driver.averaging.named_parameters())["0.weight"], model[0].weight)


# -- buffers ------------------------------------------------------------------------------------------------------------


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("queue", torch.zeros(1), persistent=False)


def after_two_updates(rule):
    driver = Driver(Buffers(), rule)
    for value in (2.0, 4.0):
        driver.model.running_mean.fill_(value)
        driver.model.count += 1
        driver.model.queue = torch.full((int(value),), value)  # another tensor, of another shape
        driver.update(value)
        driver.end_epoch()
    return driver


def test_ema_averages_statistics_and_copies_everything_else():
    driver = after_two_updates(EMA(0.5))
    state = driver.averaging.state_dict()
    assert state["running_mean"].item() == state["weight"].item() == 3  # (2 + 4) / 2
    assert state["count"].item() == 2
    assert state["mask"].tolist() == [0.0, -torch.inf]
    with driver.averaging.applied():
        assert driver.model.queue.tolist() == [4.0] * 4


def test_negative_control_torchs_mean_of_all_buffers_makes_nan_of_a_mask():
    model = Buffers()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    model.queue = torch.zeros(1)
    theirs.update_parameters(model)
    theirs.update_parameters(model)
    assert theirs.module.mask.isnan().any()


def test_swa_copies_statistics_until_they_are_recomputed():
    assert after_two_updates(SWA(start=0)).averaging.state_dict()["running_mean"].item() == 4


def test_swa_asks_for_statistics_only_where_there_is_batch_norm():
    assert Driver(with_batch_norm(), SWA(start=0)).update(1).end_epoch() is True
    assert Driver(with_batch_norm(), SWA(start=1)).update(1).end_epoch() is False  # nothing was averaged yet
    assert Driver(one_weight(), SWA(start=0)).update(1).end_epoch() is False
    assert Driver(with_batch_norm(), EMA()).update(1).end_epoch() is False


# -- carried by the model -----------------------------------------------------------------------------------------------


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def trained():
    driver = Driver(with_batch_norm(), EMA(0.5))
    driver.update(1.0)
    driver.model[1].running_mean.fill_(1.0)
    return driver.update(3.0)


@pytest.mark.parametrize("inference", [False, True])
def test_model_carries_the_average_and_gets_its_own_weights_back(inference):
    driver = trained()
    model, averaging = driver.model, driver.averaging
    before, addresses = snapshot(model), [p.data_ptr() for p in model.parameters()]
    mean = {name: value.clone() for name, value in averaging.state_dict().items()}
    with torch.inference_mode(inference):
        with averaging.applied():
            assert same(snapshot(model), mean)
            assert model[0].weight.flatten()[0].item() == 2.0  # (1 + 3) / 2
        assert not same(snapshot(model), mean)  # negative control
    assert same(snapshot(model), before)
    assert addresses == [p.data_ptr() for p in model.parameters()]  # nothing was copied
    assert same(averaging.state_dict(), mean)
    assert not any(p.is_inference() for p in model.parameters())


def test_error_inside_gives_the_weights_back():
    driver = trained()
    before = snapshot(driver.model)
    with pytest.raises(RuntimeError, match="mine"), driver.averaging.applied():
        raise RuntimeError("mine")
    assert same(snapshot(driver.model), before)


def test_raw_within_applied_and_applied_within_applied():
    driver = trained()
    weight = driver.model[0].weight
    with driver.averaging.applied():
        with driver.averaging.applied():
            assert weight.flatten()[0].item() == 2
        with driver.averaging.raw():
            assert weight.flatten()[0].item() == 3
            assert driver.averaging.state_dict()["0.weight"].flatten()[0].item() == 2
        assert weight.flatten()[0].item() == 2
        assert driver.averaging.state_dict()["0.weight"].flatten()[0].item() == 2
    assert weight.flatten()[0].item() == 3


def test_an_update_while_the_average_is_carried_averages_the_raw_weights():
    driver = Driver(one_weight(), EMA(0.5)).update(8)
    with driver.averaging.applied():
        with driver.averaging.raw(), torch.no_grad():
            driver.model.weight.fill_(4.0)
        driver.averaging.after_update()
        assert driver.model.weight.item() == 6
    assert driver.model.weight.item() == 4


def test_a_backward_pass_may_have_an_evaluation_before_it():
    driver = trained()
    model = deepcopy(driver.model)
    x = torch.randn(8, 3)
    losses = [each(x).square().mean() for each in (model, driver.model)]
    with driver.averaging.applied(), torch.inference_mode():
        driver.model.eval()(x)
    for loss in losses:
        loss.backward()
    assert all(
        torch.equal(mine.grad, theirs.grad)
        for mine, theirs in zip(driver.model.parameters(), model.parameters(), strict=True)
    )


def test_buffer_that_evaluation_assigns_anew_does_not_stay():
    class Counting(Buffers):
        def forward(self):
            self.count = self.count + 1

    driver = Driver(Counting(), EMA(0.5)).update(1.0)
    with driver.averaging.applied():
        driver.model()
        assert driver.model.count.item() == 1
    assert driver.model.count.item() == 0
    assert driver.averaging.state_dict()["count"].item() == 0


def test_before_the_first_averaging_there_is_nothing_to_carry():
    driver = Driver(one_weight(7.0), EMA(start=10))
    with driver.averaging.applied():
        assert driver.model.weight.item() == 7
    assert driver.averaging.evaluates == "raw"
    assert driver.averaging.state_dict() == driver.averaging.tensors() == {}
    assert driver.averaging.named_parameters() == []


def test_evaluating_follows_the_wish():
    for evaluate, value in (("averaged", 6.0), ("raw", 4.0)):
        driver = Driver(one_weight(), EMA(0.5, evaluate=evaluate)).update(8, 4)
        assert driver.averaging.evaluates == evaluate
        with driver.averaging.evaluating():
            assert driver.model.weight.item() == value


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    driver = Driver(model, EMA(0.5)).update(8, 4)
    with driver.averaging.applied():
        assert model[1].weight is model[0].weight
        assert model[1].weight[0, 0].item() == 6
    assert model[1].weight[0, 0].item() == 4


def test_names_are_those_of_the_model_inside_of_a_wrapper():
    model = nn.DataParallel(one_weight())
    driver = Driver(model, EMA(0.5)).update(8, 4)
    assert list(driver.averaging.state_dict()) == ["weight"]
    with driver.averaging.applied():
        assert model.module.weight.item() == 6


def test_layers_without_a_shape_are_averaged_from_their_first_update_on():
    model = nn.LazyLinear(1, bias=False)
    driver = Driver(model, EMA(0.5))
    model(torch.ones(1, 1))
    assert driver.update(8, 4).mean == 6


# -- state --------------------------------------------------------------------------------------------------------------


def test_state_goes_on_where_it_was():
    first = Driver(one_weight(), EMA(0.5)).update(8, 4)
    second = Driver(one_weight(), EMA(0.5))
    second.averaging.load_state_dict(first.averaging.state_dict(), first.averaging.describe())
    assert (
        second.averaging.describe()
        == first.averaging.describe()
        == {"kind": "ema", "num_averaged": 2, "num_updates": 2}
    )
    assert second.update(2).mean == first.update(2).mean == 4


def test_state_of_another_model_is_refused():
    driver = Driver(one_weight(), EMA(0.5))
    with pytest.raises(ArgumentError, match="does not fit the model"):
        driver.averaging.load_state_dict({"bias": torch.zeros(1)}, {"num_averaged": 1, "num_updates": 1})


def test_no_averaging_does_nothing_and_takes_no_state():
    assert NO_AVERAGING.after_update() is None
    assert not NO_AVERAGING.after_epoch(1)
    assert NO_AVERAGING.tensors() == NO_AVERAGING.describe() == {}
    NO_AVERAGING.load_state_dict({}, {})
    with pytest.raises(ArgumentError, match=r"Give it ema=EMA"):
        NO_AVERAGING.load_state_dict({"weight": torch.zeros(1)}, {"num_averaged": 3})


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), r"decay=1.0 is no decay.*below 1, such as 0.999"),
        (lambda: EMA(-0.1), "at least 0"),
        (lambda: EMA(float("nan")), "decay=nan"),
        (lambda: EMA(True), "decay=True"),
        (lambda: EMA(warmup=100), "warmup=100 is neither True nor False"),
        (lambda: EMA(every=0), "every='0 steps' is 0 steps. It must be positive"),
        (lambda: EMA(every="2 epochs"), r"It must be in updates.*is SWA"),
        (lambda: EMA(every=1.5), r"every=1.5 is no duration. Give a whole number of steps"),
        (lambda: EMA(start=-1), "must be positive"),
        (lambda: EMA(start="5 minutes"), "start='5 minutes' is in seconds. It must be in steps or epochs"),
        (lambda: EMA(evaluate="both"), 'evaluate=\'both\' is unknown. It is "averaged" or "raw"'),
        (lambda: SWA(evaluate="no"), 'evaluate=\'no\' is unknown. It is "averaged" or "raw"'),
        (lambda: SWA(start="100%"), 'It must be below "100%"'),
        (lambda: SWA(start="50 steps"), r"start='50 steps' of an SWA is 50 steps. Give epochs, or a share"),
        (lambda: SWA(every="10 steps"), r"It must be in epochs.*is EMA\(every=...\)"),
        (lambda: SWA().find_start(epochs=None, steps=None), r"limited in seconds only. Give SWA\(start=10\)"),
        (lambda: SWA(start=5).find_start(epochs=5, steps=None), "begins after 5 epochs, when this run of 5 epochs is over"),
        (lambda: EMA(start=100).find_start(epochs=5, steps=100), "when this run of 100 steps is over"),
        (lambda: find_average("0.999", []), r"ema='0.999' is no average of weights. Give a decay such as 0.999"),
        (lambda: find_average(0.9, [SWA()]), r"2 averages of the weights were given: EMA\(decay=0.9.*leave the others out"),
    ],
)  # fmt: skip
def test_wrong_averages_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_average_is_found_among_the_callbacks():
    average, others = find_average(None, [EMA(0.5)])
    assert (average, others) == (EMA(0.5), [])
    assert find_average(0.5, []) == (EMA(0.5), [])
    assert find_average(None, [])[0] is None


def test_half_precision_weights_that_would_stand_still_are_refused():
    with pytest.raises(ArgumentError, match=r"is bfloat16, whose smallest step is 0.0078125.*by 0.001 .*float32"):
        Driver(one_weight().bfloat16(), EMA(0.999))
    assert Driver(one_weight().bfloat16(), EMA(0.5)).update(8, 4).mean == 6


def test_model_that_cannot_be_copied_is_refused_before_it_trains():
    model = one_weight()
    model.handle = (each for each in ())
    with pytest.raises(ArgumentError, match=r"Linear cannot be copied.*copy.deepcopy, or train without ema"):
        Driver(model, EMA())


def test_model_that_was_changed_between_two_runs_is_refused():
    driver = Driver(one_weight(), EMA(0.5)).update(1.0)
    driver.model.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(ArgumentError, match="has changed since its weights were first averaged: bias"):
        driver.averaging.begin()
