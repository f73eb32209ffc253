"""Schedules by name: values computable by hand, laws for every name, and torch's own where they define the same curve."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from velodrome.errors import ArgumentError, CheckpointError
from velodrome.step.schedules.resolve import known_schedules, resolve_scheduler

NAMES = ["constant", "linear", "cosine", "one_cycle", "exponential", "step", "polynomial", "wsd"]
LENGTHS = {"steps_per_epoch": 10, "epochs": 5, "steps": None}


def make_optimizer(*rates, tensor=False):
    rates = rates or (1.0,)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates]
    for group in groups:
        group["params"][0].grad = torch.zeros(2)
        if tensor:
            group["lr"] = torch.tensor(group["lr"])
    return torch.optim.SGD(groups, lr=1.0, foreach=False if tensor else None)


def rates_of(name, arguments, num_updates, *, lr=1.0, every=None, run=None):
    """Return the learning rate of each update, as `fit` would drive the schedule."""
    run = LENGTHS if run is None else run
    optimizer = make_optimizer(lr)
    schedule = resolve_scheduler(name, optimizer, arguments=arguments, every=every)
    schedule.start(**run)
    rates = []
    for index in range(num_updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_update()
        if run["steps_per_epoch"] and (index + 1) % run["steps_per_epoch"] == 0:
            schedule.after_epoch({})
    return rates


def torch_rates(make, num_updates, *, per_epoch=None, lr=1.0):
    optimizer = make_optimizer(lr)
    scheduler, rates = make(optimizer), []
    for index in range(num_updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if per_epoch is None or (index + 1) % per_epoch == 0:
            scheduler.step()
    return rates


def close(rates):
    return pytest.approx(rates, rel=1e-12, abs=1e-12)


# Values by hand


def test_warm_up_over_four_updates_then_constant():
    # 1 / (4 + 1) first: no update is wasted on a learning rate of zero; full from update index 4 on.
    assert rates_of("constant", {"warmup": 4}, 7) == close([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_warm_up_from_a_given_factor():
    assert rates_of("constant", {"warmup": 4, "warmup_start": 0.0}, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("warmup", [20, "20 steps", "20 updates", "2 epochs", 0.4, "every 2 epochs"])
def test_warm_up_in_updates_words_epochs_or_as_a_fraction_is_the_same(warmup):
    assert rates_of("cosine", {"warmup": warmup}, 50) == rates_of("cosine", {"warmup": 20}, 50)


def test_warm_up_given_as_a_duration_parsed_elsewhere():
    duration = SimpleNamespace(amount=2, unit="epochs")
    assert rates_of("cosine", {"warmup": duration}, 50) == rates_of("cosine", {"warmup": 20}, 50)


def test_linear_over_four_updates():
    run = {"steps_per_epoch": None, "epochs": None, "steps": 4}
    assert rates_of("linear", {"end_factor": 0.2}, 6, run=run) == close([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_cosine_between_lr_and_min_lr_of_each_group():
    optimizer = make_optimizer(1.0, 0.1)
    schedule = resolve_scheduler("cosine", optimizer, arguments={"min_lr": 0.02})
    schedule.start(steps_per_epoch=1, epochs=2, steps=None)
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(3):
        schedule.after_update()
        seen.append([group["lr"] for group in optimizer.param_groups])
    half = 0.02 + 0.5 * 0.98, 0.02 + 0.5 * 0.08
    assert seen == [close(row) for row in ([1.0, 0.1], half, [0.02, 0.02], [0.02, 0.02])]


def test_warmup_stable_decay_over_ten_updates():
    run = {"steps_per_epoch": 5, "epochs": 2, "steps": None}
    rates = rates_of("wsd", {"warmup": 2, "warmup_start": 0.0, "decay": 4}, 11, run=run)
    assert rates == close([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_warmup_stable_decay_falls_as_one_minus_the_root():
    run = {"steps_per_epoch": None, "epochs": None, "steps": 8}
    rates = rates_of("wsd", {"decay": "4 steps", "shape": "sqrt"}, 9, run=run)
    assert rates == close([1.0] * 5 + [1 - math.sqrt(i / 4) for i in (1, 2, 3, 4)])


def test_exponential_is_gamma_per_epoch():
    rates = rates_of("exponential", {"gamma": 0.25}, 21)
    assert (rates[0], rates[5], rates[10], rates[20]) == close((1.0, 0.5, 0.25, 0.0625))


def test_step_drops_after_every_two_epochs():
    assert rates_of("step", {"every": "2 epochs", "gamma": 0.5}, 50) == [1.0] * 20 + [0.5] * 20 + [0.25] * 10


def test_step_drops_at_milestones_of_any_unit():
    rates = rates_of("step", {"milestones": ["1 epoch", 25, 0.6], "gamma": 0.5}, 50)
    assert rates == [1.0] * 10 + [0.5] * 15 + [0.25] * 5 + [0.125] * 20


@pytest.mark.parametrize(
    ("budget", "num_updates"),
    [({"epochs": 5, "steps": 30}, 30), ({"epochs": 5, "steps": 80}, 50), ({"epochs": None, "steps": 30}, 30)],
)
def test_length_is_the_smaller_of_the_budgets(budget, num_updates):
    rates = rates_of("linear", {}, 90, run={"steps_per_epoch": 10, **budget})
    assert rates.index(0.0) == num_updates


def test_length_by_hand_wins_over_the_run():
    assert rates_of("linear", {"length": "2 epochs"}, 50).index(0.0) == 20
    unknown = {"steps_per_epoch": None, "epochs": None, "steps": None}
    assert rates_of("linear", {"length": 20}, 50, run=unknown).index(0.0) == 20


def test_read_per_epoch_the_rate_stays_within_one():
    rates = rates_of("linear", {}, 50, every="epoch")
    assert rates == close([1 - index // 10 * 10 / 50 for index in range(50)])


def test_read_every_four_updates():
    assert rates_of("linear", {}, 10, every="4 steps") == close([1.0] * 4 + [0.92] * 4 + [0.84] * 2)


# torch's own


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("cosine", {"min_lr": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.01)),
        ("linear", {"end_factor": 0.3}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.3, 50)),
        ("polynomial", {"power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, 50, power=2.0)),
        ("step", {"every": 7, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 7, 0.3)),
        ("step", {"milestones": [5, 31]}, lambda o: lr_scheduler.MultiStepLR(o, [5, 31], 0.1)),
        ("exponential", {"gamma": 0.9, "every": "step"}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        ("constant", {"warmup": 8, "warmup_start": 0.25}, lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 8)),
        ("one_cycle", {}, lambda o: lr_scheduler.OneCycleLR(o, 0.4, 50, cycle_momentum=False)),
        (
            "one_cycle",
            {"warmup": 0.25, "shape": "linear", "warmup_start": 0.1, "min_factor": 0.001},
            lambda o: lr_scheduler.OneCycleLR(
                o, 0.4, 50, None, None, 0.25, "linear", False, div_factor=10.0, final_div_factor=100.0
            ),
        ),
    ],
)
def test_curve_is_that_of_torchs_scheduler(name, arguments, make):
    assert rates_of(name, arguments, 50, lr=0.4) == close(torch_rates(make, 50, lr=0.4))


def test_warm_up_then_cosine_is_torchs_sequential():
    def make(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10),
            lr_scheduler.CosineAnnealingLR(optimizer, 40),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [10])

    assert rates_of("cosine", {"warmup": 10, "warmup_start": 0.1}, 50) == close(torch_rates(make, 50))


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("exponential", {"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, 5)),
        ("step", {"every": "2 epochs"}, lambda o: lr_scheduler.StepLR(o, 2)),
    ],
)
def test_read_per_epoch_the_curve_is_torchs_stepped_per_epoch(name, arguments, make):
    assert rates_of(name, arguments, 50, every="epoch") == close(torch_rates(make, 50, per_epoch=10))


# Laws


@st.composite
def runs(draw):
    """Draw a name with arguments, a warm-up and a run that it fits into."""
    name = draw(st.sampled_from(NAMES))
    steps = draw(st.integers(4, 300))
    warmup = draw(st.integers(0, steps // 3))
    arguments = {"warmup": warmup, "warmup_start": draw(st.floats(0, 1))}
    own = {
        "exponential": {"gamma": draw(st.floats(0.01, 1)), "every": draw(st.integers(1, 400))},
        "step": {"every": draw(st.integers(warmup + 1, 400)), "gamma": draw(st.floats(0.01, 1))},
        "polynomial": {"power": draw(st.floats(0.1, 5)), "min_factor": draw(st.floats(0, 1))},
        "cosine": {"min_factor": draw(st.floats(0, 1))},
        "linear": {"end_factor": draw(st.floats(0, 1))},
        "wsd": {
            "decay": draw(st.floats(0.01, 0.5)),
            "min_factor": draw(st.floats(0, 1)),
            "shape": draw(st.sampled_from(["linear", "cosine", "sqrt"])),
        },
    }
    return name, {**arguments, **own.get(name, {})}, steps


@given(runs())
@settings(max_examples=150, deadline=None)
def test_law_factors_rise_through_the_warm_up_and_never_after_it(drawn):
    name, arguments, steps = drawn
    factors = rates_of(name, arguments, steps + 20, run={"steps_per_epoch": None, "epochs": None, "steps": steps})
    top = max(0, arguments["warmup"] - 1) if name == "one_cycle" else arguments["warmup"]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[top] == 1.0  # the joint: the warm-up ends where the main curve begins
    assert all(early <= late + 1e-15 for early, late in pairwise(factors[: top + 1]))
    if name != "exponential" and name != "step":
        assert len(set(factors[steps:])) == 1  # past the end the last value holds
        end = arguments.get("min_factor", arguments.get("end_factor", 1 if name == "constant" else 4e-6))
        assert factors[steps] == pytest.approx(end, rel=1e-12)
    assert all(early >= late - 1e-15 for early, late in pairwise(factors[top:]))


@given(runs(), st.data())
@settings(max_examples=60, deadline=None)
def test_law_stopped_and_loaded_anywhere_the_rates_go_on(drawn, data):
    name, arguments, steps = drawn
    stop = data.draw(st.integers(0, steps))
    starts_first = data.draw(st.booleans())
    run = {"steps_per_epoch": None, "epochs": None, "steps": steps}
    straight = rates_of(name, arguments, steps, run=run)

    optimizer = make_optimizer()
    schedule = resolve_scheduler(name, optimizer, arguments=arguments)
    schedule.start(**run)
    for _ in range(stop):
        schedule.after_update()
    saved, saved_optimizer = schedule.state_dict(), optimizer.state_dict()

    optimizer = make_optimizer()
    schedule = resolve_scheduler(name, optimizer, arguments=arguments)
    if starts_first:
        schedule.start(**run)
    optimizer.load_state_dict(saved_optimizer)
    schedule.load_state_dict(saved)
    if not starts_first:
        schedule.start(**run)
    resumed = []
    for _ in range(stop, steps):
        resumed.append(optimizer.param_groups[0]["lr"])
        schedule.after_update()
    assert resumed == straight[stop:]


def test_without_the_state_the_rates_do_not_go_on():
    """The negative control: a schedule that is not loaded begins anew."""
    optimizer = make_optimizer()
    schedule = resolve_scheduler("linear", optimizer)
    schedule.start(**LENGTHS)
    for _ in range(25):
        schedule.after_update()
    other = make_optimizer()
    other.load_state_dict(optimizer.state_dict())
    resolve_scheduler("linear", other).start(**LENGTHS)
    assert (optimizer.param_groups[0]["lr"], other.param_groups[0]["lr"]) == (0.5, 1.0)


def test_state_is_a_counter():
    schedule = resolve_scheduler("cosine", make_optimizer())
    schedule.start(**LENGTHS)
    for _ in range(3):
        schedule.after_update()
    assert schedule.state_dict() == {"kind": "cosine", "updates": 3, "epochs": 0, "read_at": 3}


def test_loaded_optimizer_state_without_initial_rates_keeps_those_it_was_made_with():
    optimizer = make_optimizer(0.4)
    schedule = resolve_scheduler("linear", optimizer)
    state = make_optimizer(0.1).state_dict()  # saved in the middle of a run, by a trainer that keeps only "lr"
    optimizer.load_state_dict(state)
    schedule.load_state_dict({"kind": "linear", "updates": 25, "epochs": 2, "read_at": 25})
    schedule.start(**LENGTHS)
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_stopped_within_an_epoch_the_rate_of_its_beginning_comes_back():
    optimizer = make_optimizer()
    schedule = resolve_scheduler("linear", optimizer, every="epoch")
    schedule.start(**LENGTHS)
    for _ in range(10):
        schedule.after_update()
    schedule.after_epoch({})
    for _ in range(4):
        schedule.after_update()
    assert optimizer.param_groups[0]["lr"] == 0.8
    other = make_optimizer()
    resumed = resolve_scheduler("linear", other, every="epoch")
    resumed.load_state_dict(schedule.state_dict())
    resumed.start(**LENGTHS)
    assert other.param_groups[0]["lr"] == 0.8


def test_longer_run_fits_the_curve_to_the_new_length_at_the_same_position():
    optimizer = make_optimizer()
    schedule = resolve_scheduler("linear", optimizer)
    schedule.start(steps_per_epoch=10, epochs=2, steps=None)
    for _ in range(20):
        schedule.after_update()
    assert optimizer.param_groups[0]["lr"] == 0.0
    schedule.start(steps_per_epoch=10, epochs=4, steps=None)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_tensor_rates_are_changed_in_place():
    optimizer = make_optimizer(0.5, 0.25, tensor=True)
    tensors = [group["lr"] for group in optimizer.param_groups]
    schedule = resolve_scheduler("linear", optimizer, arguments={"warmup": 1})
    schedule.start(steps_per_epoch=None, epochs=None, steps=5)
    assert [float(lr) for lr in tensors] == [0.25, 0.125]  # 1 / (1 + 1) of each
    for _ in range(3):
        schedule.after_update()
    assert [group["lr"] is lr for group, lr in zip(optimizer.param_groups, tensors, strict=True)] == [True, True]
    assert [float(lr) for lr in tensors] == [0.25, 0.125]  # half of the fall over four updates


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensor_rates_on_cuda_change_without_a_wait():
    parameter = torch.nn.Parameter(torch.zeros(2, device="cuda"))
    lr = torch.tensor(1.0, device="cuda")
    optimizer = torch.optim.Adam([parameter], lr=lr, capturable=True)
    schedule = resolve_scheduler("cosine", optimizer)
    schedule.start(steps_per_epoch=None, epochs=None, steps=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        schedule.after_update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(lr) == pytest.approx(0.5)


def test_group_added_later_has_its_own_rate_as_the_peak():
    optimizer = make_optimizer()
    schedule = resolve_scheduler("linear", optimizer)
    schedule.start(steps_per_epoch=None, epochs=None, steps=4)
    schedule.after_update()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1})
    schedule.after_update()
    assert [group["lr"] for group in optimizer.param_groups] == close([0.5, 0.05])


def test_optimizer_step_is_not_replaced():
    optimizer = make_optimizer()
    resolve_scheduler("cosine", optimizer).start(**LENGTHS)
    assert "step" not in vars(optimizer)


# Words


@pytest.mark.parametrize(
    ("name", "arguments", "every", "line"),
    [
        ("cosine", {"warmup": "1 epoch"}, None, "cosine over 4,690 updates after 938 of warm-up, per update"),
        ("linear", {}, "epoch", "linear over 5,628 updates, per epoch"),
        ("constant", {"warmup": 5}, None, "constant after 5 of warm-up, per update"),
        ("exponential", {"gamma": 0.9}, None, "exponential by 0.9 over every 1 epochs, per update"),
        ("step", {"milestones": [10, "2 epochs"]}, "2 epochs", "step by 0.1 at 10 steps, 2 epochs, every 2 epochs"),
    ],
)
def test_description(name, arguments, every, line):
    schedule = resolve_scheduler(name, make_optimizer(), arguments=arguments, every=every)
    schedule.start(steps_per_epoch=938, epochs=6, steps=None)
    assert schedule.describe() == line


def test_description_before_the_start_says_that_the_run_decides():
    assert "fitted to the run" in resolve_scheduler("cosine", make_optimizer()).describe()


@pytest.mark.parametrize(
    ("name", "arguments", "needs"),
    [
        ("cosine", {}, True),
        ("cosine", {"length": "100 steps"}, False),
        ("cosine", {"length": "10 epochs"}, True),
        ("constant", {"warmup": 5}, False),
        ("constant", {"warmup": 0.5}, True),
        ("exponential", {"gamma": 0.5}, True),
        ("step", {"every": 5}, False),
    ],
)
def test_needs_length_is_whether_an_unknown_run_is_refused(name, arguments, needs):
    schedule = resolve_scheduler(name, make_optimizer(), arguments=arguments)
    assert schedule.needs_length is needs
    if needs:
        with pytest.raises(ArgumentError):
            schedule.start(steps_per_epoch=None, epochs=3, steps=None)
    else:
        schedule.start(steps_per_epoch=None, epochs=3, steps=None)


# Refusals


def test_unknown_length_names_the_argument_that_gives_it_by_hand():
    schedule = resolve_scheduler("cosine", make_optimizer())
    with pytest.raises(ArgumentError, match=r'length="1000 steps" among the scheduler\'s arguments'):
        schedule.start(steps_per_epoch=None, epochs=5, steps=None)


def test_epochs_of_unknown_length_ask_for_updates():
    schedule = resolve_scheduler("constant", make_optimizer(), arguments={"warmup": "2 epochs"})
    with pytest.raises(ArgumentError, match=r'warmup="2 epochs" cannot be .* such as warmup="100 steps"'):
        schedule.start(steps_per_epoch=None, epochs=5, steps=100)


def test_fraction_of_an_unknown_length_is_refused():
    schedule = resolve_scheduler("constant", make_optimizer(), arguments={"warmup": 0.1})
    with pytest.raises(
        ArgumentError, match=r'warmup=0\.1 is a fraction of a run whose length is not known.*length="1000'
    ):
        schedule.start(steps_per_epoch=None, epochs=5, steps=None)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosin", {}, r'not a known schedule\. Did you mean "cosine"'),
        ("cosineanealinglr", {}, r'Did you mean "cosineannealinglr"'),
        ("cosine", {"warm_up": 3}, r'no argument \'warm_up\'\. Did you mean "warmup"'),
        ("cosine", {"min_lr": -1}, r"min_lr=-1 is not a learning rate"),
        ("cosine", {"min_lr": 0.1, "min_factor": 0.1}, r"say the same thing twice"),
        ("cosine", {"min_factor": 2}, r"min_factor=2 .* from 0 to 1"),
        ("cosine", {"warmup": -5}, r"warmup=-5 is not a length"),
        ("cosine", {"warmup": True}, r"warmup=True is not a length"),
        ("cosine", {"warmup": "5 minutes"}, r"warmup='5 minutes' is not a length"),
        ("cosine", {"warmup": 5.0}, r"must be at most 1\. .* such as warmup=5\."),
        ("cosine", {"warmup_start": 2}, r"warmup_start=2 .* from 0 to 1"),
        ("cosine", {"length": 0.5}, r"length=0\.5 is a fraction"),
        ("cosine", {"length": 0}, r"length=0 is no time at all"),
        ("cosine", {"length": 10, "warmup": 10}, r"10 updates of a run of 10\. It must leave some"),
        ("exponential", {}, r"needs 'gamma'"),
        ("exponential", {"gamma": 1.5}, r"gamma=1\.5 .* at most 1"),
        ("step", {}, r"Give exactly one, such as every="),
        ("step", {"every": 3, "milestones": [4]}, r"Give exactly one, such as every="),
        ("step", {"milestones": 4}, r"milestones=4 is not a list"),
        ("step", {"every": 3, "warmup": 5}, r"first drop, at update 3, does not come after the warm-up of 5"),
        ("step", {"milestones": [9, 5], "warmup": 5}, r"first drop, at update 5, does not come after"),
        ("polynomial", {"power": 0}, r"power=0 .* must be positive"),
        ("wsd", {"shape": "cosin"}, r'shape=\'cosin\' is unknown\. Did you mean "cosine"'),
        ("wsd", {"length": 10, "warmup": 6, "decay": 6}, r"6 and 6 updates of a run of 10"),
        ("sequentiallr", {}, r"made of other schedulers.* give it as it is"),
    ],
)
def test_wrong_name_or_argument_is_refused_at_once(name, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_scheduler(name, make_optimizer(), arguments=arguments)


def test_min_lr_above_a_groups_rate_is_refused():
    schedule = resolve_scheduler("cosine", make_optimizer(1.0, 0.01), arguments={"min_lr": 0.1})
    with pytest.raises(ArgumentError, match=r"min_lr=0\.1 is above the learning rate of a parameter group, 0\.01"):
        schedule.start(**LENGTHS)


@pytest.mark.parametrize("every", ["often", "0 epochs", "1.5 epochs", "5 minutes", 3])
def test_interval_that_is_none_is_refused(every):
    with pytest.raises(ArgumentError, match=r"does not say how often\. Write \"step\""):
        resolve_scheduler("cosine", make_optimizer(), every=every)


def test_monitor_for_a_curve_is_refused():
    with pytest.raises(ArgumentError, match=r'looks at no value.*scheduler="plateau"'):
        resolve_scheduler("cosine", make_optimizer(), monitor="val/loss")


def test_state_of_another_kind_is_refused():
    saved = resolve_scheduler("linear", make_optimizer()).state_dict()
    with pytest.raises(CheckpointError, match=r"saved schedule is 'linear', and this run's is 'cosine'"):
        resolve_scheduler("cosine", make_optimizer()).load_state_dict(saved)


def test_every_name_of_ours_is_listed():
    assert {*NAMES, "plateau", "cosineannealinglr", "onecyclelr", "reducelronplateau"} <= set(known_schedules())
