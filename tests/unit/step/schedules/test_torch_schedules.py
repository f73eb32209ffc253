"""Torch's own schedulers: stepped when their documentation says, saved as plain values, refused where they cannot work."""

import functools
import json
import math

import pytest
import torch
from torch.optim import lr_scheduler

from velodrome.checkpoint.state import encode_state
from velodrome.errors import ArgumentError, CheckpointError
from velodrome.step.schedules import NO_SCHEDULE
from velodrome.step.schedules.resolve import known_schedules, resolve_scheduler

EPOCHS, PER_EPOCH = 6, 4
RUN = {"steps_per_epoch": PER_EPOCH, "epochs": EPOCHS, "steps": None}


def make_optimizer(lr=0.8, *, kind=torch.optim.SGD, **options):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    return kind([parameter], lr=lr, **options)


def drive(schedule, optimizer, *, begin=0, end=EPOCHS * PER_EPOCH, rows=None):
    """Return the learning rate (and momentum) of the updates begin..end, as `fit` would drive the schedule."""
    seen = []
    for index in range(begin, end):
        group = optimizer.param_groups[0]
        seen.append((float(group["lr"]), group.get("momentum")))
        optimizer.step()
        schedule.after_update()
        if (index + 1) % PER_EPOCH == 0:
            schedule.after_epoch(rows[index // PER_EPOCH] if rows else {})
    return seen


def plain_loop(make, *, per_update, momentum=0.0):
    optimizer = make_optimizer(momentum=momentum)
    scheduler = make(optimizer)
    seen = []
    for index in range(EPOCHS * PER_EPOCH):
        group = optimizer.param_groups[0]
        seen.append((float(group["lr"]), group.get("momentum")))
        optimizer.step()
        if per_update or (index + 1) % PER_EPOCH == 0:
            scheduler.step()
    return seen


def sequential(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    )


class Lambda:
    """A callable with state, which LambdaLR saves."""

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch):
        self.calls += 1
        return 0.5**epoch


TOTAL = EPOCHS * PER_EPOCH
EVERY_ONE = {
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch), False),
    "LambdaLR, an object": (lambda o: lr_scheduler.LambdaLR(o, Lambda()), False),
    "MultiplicativeLR": (lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.5), False),
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 2), False),
    "MultiStepLR": (lambda o: lr_scheduler.MultiStepLR(o, [1, 4]), False),
    "ConstantLR": (lambda o: lr_scheduler.ConstantLR(o, 0.5, 3), False),
    "LinearLR": (lambda o: lr_scheduler.LinearLR(o, 0.5), False),
    "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), False),
    "SequentialLR": (sequential, False),
    "ChainedScheduler": (chained, False),
    "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS), False),
    "CosineAnnealingWarmRestarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), False),
    "PolynomialLR": (lambda o: lr_scheduler.PolynomialLR(o, 4, 2.0), False),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 3, mode="exp_range", gamma=0.9), True),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.5, TOTAL), True),
}


def test_every_class_of_torch_is_driven_here():
    classes = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert classes - {"LRScheduler", "ReduceLROnPlateau"} <= set(EVERY_ONE)


@pytest.mark.parametrize("name", EVERY_ONE)
def test_instance_gives_the_rates_of_the_plain_loop_bit_for_bit(name):
    make, per_update = EVERY_ONE[name]
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(make(optimizer), optimizer)
    schedule.start(**RUN)
    assert drive(schedule, optimizer) == plain_loop(make, per_update=per_update, momentum=0.5)


@pytest.mark.parametrize("scheduler_first", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 7, 8, 23])
@pytest.mark.parametrize("name", EVERY_ONE)
def test_law_saved_as_json_and_loaded_the_rates_go_on(name, stop, scheduler_first):
    make, per_update = EVERY_ONE[name]
    straight = plain_loop(make, per_update=per_update, momentum=0.5)
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(make, optimizer)
    schedule.start(**RUN)
    drive(schedule, optimizer, end=stop)
    saved, saved_optimizer = json.loads(encode_state(schedule.state_dict())), optimizer.state_dict()

    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(make, optimizer)
    if scheduler_first:
        schedule.start(**RUN)
    optimizer.load_state_dict(saved_optimizer)
    schedule.load_state_dict(saved)
    if not scheduler_first:
        schedule.start(**RUN)
    assert drive(schedule, optimizer, begin=stop) == straight[stop:]


def test_without_the_schedulers_state_the_rates_do_not_go_on():
    """The negative control of the law above."""
    make, _ = EVERY_ONE["StepLR"]
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(make, optimizer)
    drive(schedule, optimizer, end=7)
    saved = optimizer.state_dict()
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(make, optimizer)
    optimizer.load_state_dict(saved)
    assert drive(schedule, optimizer, begin=7) != plain_loop(make, per_update=False, momentum=0.5)[7:]


@pytest.mark.parametrize("stop", [0, 9])
def test_one_cycle_of_the_runs_length_goes_on_with_momentum_in_a_new_process(stop):
    make, _ = EVERY_ONE["OneCycleLR"]
    straight = plain_loop(make, per_update=True, momentum=0.5)
    factory = functools.partial(lr_scheduler.OneCycleLR, max_lr=0.5)
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(factory, optimizer)
    assert schedule.needs_length
    before = json.loads(encode_state(schedule.state_dict()))
    schedule.start(**RUN)
    assert drive(schedule, optimizer, end=stop) == straight[:stop]
    saved = json.loads(encode_state(schedule.state_dict())) if stop else before
    saved_optimizer = optimizer.state_dict() if stop else make_optimizer(momentum=0.5).state_dict()

    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(factory, optimizer)
    optimizer.load_state_dict(saved_optimizer)
    schedule.load_state_dict(saved)
    assert schedule.state_dict() == saved  # saved once more before it starts, nothing is lost
    schedule.start(**RUN)
    assert drive(schedule, optimizer, begin=stop) == straight[stop:]


def test_one_cycle_by_name_per_epoch_takes_the_epochs():
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler("onecyclelr", optimizer, arguments={"max_lr": 0.5}, every="epoch")
    schedule.start(**RUN)
    assert schedule.describe() == "OneCycleLR over 6 epochs, per epoch"
    assert drive(schedule, optimizer) == plain_loop(
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, EPOCHS), per_update=False, momentum=0.5
    )


def test_one_cycle_holds_its_last_rate_where_torch_goes_up_and_raises():
    optimizer = make_optimizer(momentum=0.5)
    schedule = resolve_scheduler(lr_scheduler.OneCycleLR, optimizer, arguments={"max_lr": 0.5, "total_steps": 10})
    schedule.start(**RUN)
    rates = drive(schedule, optimizer)
    assert rates[9:] == [rates[9]] * 15
    assert rates[9] == pytest.approx((0.5 / 25 / 1e4, 0.95))


def test_one_cycle_of_unknown_length_names_total_steps():
    schedule = resolve_scheduler(lr_scheduler.OneCycleLR, make_optimizer(momentum=0.5), arguments={"max_lr": 0.5})
    with pytest.raises(ArgumentError, match=r"OneCycleLR follows the length of the run.* or total_steps="):
        schedule.start(steps_per_epoch=None, epochs=2, steps=None)


@pytest.mark.parametrize(
    ("every", "num_steps"), [(None, 6), ("epoch", 6), ("step", 24), ("update", 24), ("2 epochs", 3), ("8 steps", 3)]
)
def test_every_decides_how_often_it_is_stepped(every, num_steps):
    optimizer = make_optimizer(1.0)
    schedule = resolve_scheduler("exponentiallr", optimizer, arguments={"gamma": 0.5}, every=every)
    schedule.start(**RUN)
    drive(schedule, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5**num_steps


def test_tensor_rate_of_a_capturable_optimizer_is_changed_in_place():
    lr = torch.tensor(1.0)
    optimizer = make_optimizer(lr)
    schedule = resolve_scheduler("steplr", optimizer, arguments={"step_size": 1, "gamma": 0.5})
    drive(schedule, optimizer, end=8)
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 0.25
    other_lr = torch.tensor(1.0)
    other = make_optimizer(other_lr)
    resumed = resolve_scheduler("steplr", other, arguments={"step_size": 1, "gamma": 0.5})
    resumed.load_state_dict(json.loads(encode_state(schedule.state_dict())))
    assert float(other_lr) == 0.25
    assert [rate for rate, _ in drive(resumed, other, begin=8, end=16)] == [0.25] * 4 + [0.125] * 4


def test_updates_made_without_calling_step_cause_no_warning():
    """As graph replays do; torch would warn about the order of the calls, and warnings are errors here."""
    optimizer = make_optimizer(1.0)
    schedule = resolve_scheduler("exponentiallr", optimizer, arguments={"gamma": 0.5}, every="step")
    schedule.start(**RUN)
    schedule.after_update()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_no_scheduler_is_the_identity():
    optimizer = make_optimizer(0.3)
    schedule = resolve_scheduler(None, optimizer)
    assert schedule is NO_SCHEDULE
    schedule.start(steps_per_epoch=None, epochs=None, steps=None)
    assert drive(schedule, optimizer) == [(0.3, 0)] * TOTAL
    assert "initial_lr" not in optimizer.param_groups[0]
    assert (schedule.needs_length, schedule.state_dict()) == (False, {})
    schedule.load_state_dict({})
    assert schedule.describe() == "none: the learning rate stays as it is"


def test_state_of_a_schedule_is_refused_without_one():
    optimizer = make_optimizer()
    saved = resolve_scheduler("steplr", optimizer, arguments={"step_size": 2}).state_dict()
    with pytest.raises(CheckpointError, match=r"saved schedule is 'StepLR', and this run's is 'none'"):
        NO_SCHEDULE.load_state_dict(saved)


def test_state_that_is_no_plain_value_is_refused_with_its_place():
    class Odd(lr_scheduler.StepLR):
        def state_dict(self):
            return {**super().state_dict(), "lock": {1, 2}}

    optimizer = make_optimizer()
    schedule = resolve_scheduler(Odd(optimizer, 1), optimizer)
    with pytest.raises(ArgumentError, match=r"The state of Odd\['lock'\] is a set"):
        schedule.state_dict()


# Plateau


def rows(*losses, name="val/loss"):
    return [{"epoch": index, name: loss, "train/loss": 1.0} for index, loss in enumerate(losses)]


def plateau(optimizer, **options):
    return resolve_scheduler("plateau", optimizer, arguments={"patience": 0, "factor": 0.5}, **options)


def test_plateau_halves_the_rate_after_an_epoch_without_improvement():
    optimizer = make_optimizer(0.8)
    rates = drive(plateau(optimizer), optimizer, rows=rows(3.0, 2.0, 2.5, 1.0, 1.0, 1.0))
    assert [rate for rate, _ in rates[::PER_EPOCH]] == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2]
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf, None])
def test_plateau_takes_a_value_that_is_none_for_neither_better_nor_worse(bad):
    optimizer = make_optimizer(0.8)
    schedule = plateau(optimizer)
    for row in rows(1.0, bad, bad, 0.9):
        schedule.after_epoch(row)
    assert optimizer.param_groups[0]["lr"] == 0.8
    schedule.after_epoch(rows(0.95)[0])
    assert optimizer.param_groups[0]["lr"] == 0.4  # 0.9 is still the best


def test_plateau_follows_the_training_loss_when_there_is_no_other():
    optimizer = make_optimizer(0.8)
    schedule = plateau(optimizer)
    for loss in (2.0, 3.0):
        schedule.after_epoch({"train/loss": loss})
    assert optimizer.param_groups[0]["lr"] == 0.4
    assert schedule.describe() == "plateau on train/loss (min), per epoch"


def test_plateau_knows_that_accuracy_should_grow():
    optimizer = make_optimizer(0.8)
    schedule = plateau(optimizer, monitor="val/accuracy")
    for accuracy in (0.5, 0.6, 0.7):
        schedule.after_epoch({"val/loss": 1.0, "val/accuracy": accuracy})
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_plateau_every_two_epochs_looks_at_every_other_row():
    optimizer = make_optimizer(0.8)
    schedule = plateau(optimizer, every="2 epochs")
    for row in rows(9.0, 1.0, 9.0, 0.5, 9.0, 0.6):
        schedule.after_epoch(row)
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_plateau_after_a_warm_up():
    optimizer = make_optimizer(0.8)
    schedule = resolve_scheduler(
        "plateau", optimizer, arguments={"patience": 0, "factor": 0.5, "warmup": "1 epoch", "warmup_start": 0.0}
    )
    assert schedule.needs_length
    schedule.start(**RUN)
    rates = drive(schedule, optimizer, rows=rows(1.0, 2.0, 2.0, 2.0, 2.0, 2.0))
    warm = [0.0, 0.2, 0.4, 0.6]
    assert [rate for rate, _ in rates[:8]] == pytest.approx([*warm, 0.8, 0.8, 0.8, 0.8])
    assert [rate for rate, _ in rates[8::PER_EPOCH]] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert schedule.describe() == "plateau on val/loss (min) after 4 updates of warm-up, per epoch"


@pytest.mark.parametrize("stop", [2, 4, 9, 16])
@pytest.mark.parametrize("start_first", [False, True])
def test_law_plateau_with_warm_up_goes_on_after_loading(stop, start_first):
    losses = rows(1.0, 2.0, 0.5, 2.0, 2.0, 2.0)

    def make(optimizer):
        return resolve_scheduler(
            "plateau", optimizer, arguments={"patience": 1, "factor": 0.5, "warmup": 0.25}, monitor="val/loss"
        )

    optimizer = make_optimizer()
    schedule = make(optimizer)
    schedule.start(**RUN)
    straight = drive(schedule, optimizer, rows=losses)
    optimizer = make_optimizer()
    schedule = make(optimizer)
    schedule.start(**RUN)
    drive(schedule, optimizer, end=stop, rows=losses)
    saved, saved_optimizer = json.loads(encode_state(schedule.state_dict())), optimizer.state_dict()
    optimizer = make_optimizer()
    schedule = make(optimizer)
    if start_first:
        schedule.start(**RUN)
    optimizer.load_state_dict(saved_optimizer)
    schedule.load_state_dict(saved)
    if not start_first:
        schedule.start(**RUN)
    assert drive(schedule, optimizer, begin=stop, rows=losses) == straight[stop:]


def test_plateau_instance_is_used_as_it_is():
    optimizer = make_optimizer(0.8)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.1, patience=0)
    schedule = resolve_scheduler(scheduler, optimizer, monitor="val/accuracy")
    for accuracy in (0.5, 0.4):
        schedule.after_epoch({"val/accuracy": accuracy})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.08)
    assert schedule.describe() == "ReduceLROnPlateau on val/accuracy (max), per epoch"


def test_monitor_that_the_first_row_lacks_is_refused_with_the_known_names():
    schedule = plateau(make_optimizer(), monitor="valid/loss")
    with pytest.raises(
        ArgumentError, match=r'monitor=\'valid/loss\' is not among .*Did you mean "val/loss"\? Known: .*train/loss'
    ):
        schedule.after_epoch({"epoch": 1, "val/loss": 1.0, "train/loss": 2.0})


def test_plateau_per_update_is_refused():
    with pytest.raises(ArgumentError, match=r'does not go with plateau.* Give every="epoch"'):
        plateau(make_optimizer(), every="step")


def test_plateau_on_a_value_of_unknown_direction_asks_for_mode():
    with pytest.raises(ArgumentError, match=r"monitor='val/q' does not say whether smaller is better\..*Give mode="):
        plateau(make_optimizer(), monitor="val/q")


# Refusals


def test_scheduler_of_another_optimizer_is_refused():
    scheduler = lr_scheduler.StepLR(make_optimizer(), 1)
    with pytest.raises(
        ArgumentError, match=r"StepLR built on another optimizer than the SGD of this run.* Build it on this"
    ):
        resolve_scheduler(scheduler, make_optimizer())


def test_factory_that_builds_on_another_optimizer_is_refused():
    other = make_optimizer()
    with pytest.raises(
        ArgumentError, match=r"what the scheduler factory .* returned is a StepLR built on another optimizer"
    ):
        resolve_scheduler(lambda optimizer: lr_scheduler.StepLR(other, 1), make_optimizer())


def test_factory_that_returns_something_else_is_refused():
    with pytest.raises(ArgumentError, match=r"factory .* returned a float\. It must return a scheduler"):
        resolve_scheduler(lambda optimizer: 0.1, make_optimizer())


def test_second_schedule_for_one_group_is_refused():
    optimizer = make_optimizer()
    kept = lr_scheduler.StepLR(optimizer, 1)
    for second in ("cosine", "plateau", lr_scheduler.StepLR):
        with pytest.raises(ArgumentError, match=r"two schedules for one group .*Give that scheduler itself"):
            resolve_scheduler(second, optimizer)
    with pytest.raises(ArgumentError, match=r"two schedules for one group .*SequentialLR .* ChainedScheduler"):
        resolve_scheduler([kept, kept], optimizer)


@pytest.mark.parametrize("extra", [{"arguments": {"gamma": 1}}, {"every": "step"}, {"monitor": "val/loss"}])
def test_arguments_without_a_scheduler_are_refused(extra):
    with pytest.raises(ArgumentError, match=r"(gamma|every|monitor) was given without a scheduler"):
        resolve_scheduler(None, make_optimizer(), **extra)


def test_arguments_for_a_made_scheduler_are_refused():
    optimizer = make_optimizer()
    with pytest.raises(ArgumentError, match=r"gamma was given with a StepLR that is made already"):
        resolve_scheduler(lr_scheduler.StepLR(optimizer, 1), optimizer, arguments={"gamma": 0.5})


def test_monitor_for_a_scheduler_that_has_none_is_refused():
    optimizer = make_optimizer()
    with pytest.raises(ArgumentError, match=r"monitor='val/loss' was given with StepLR, which looks at no value"):
        resolve_scheduler(lr_scheduler.StepLR(optimizer, 1), optimizer, monitor="val/loss")


def test_unknown_argument_of_a_class_is_refused_with_the_nearest():
    with pytest.raises(ArgumentError, match=r"'StepLR' has no argument 'stepsize'\. Did you mean \"step_size\""):
        resolve_scheduler("steplr", make_optimizer(), arguments={"stepsize": 3})


def test_class_that_refuses_its_arguments_says_why():
    with pytest.raises(ArgumentError, match=r"lr_scheduler\.StepLR refused its arguments: .*step_size"):
        resolve_scheduler("steplr", make_optimizer())


def test_thing_that_is_no_scheduler_is_refused():
    with pytest.raises(ArgumentError, match=r"scheduler=3 is no scheduler\. Give a name"):
        resolve_scheduler(3, make_optimizer())


@pytest.mark.parametrize("name", sorted(set(known_schedules()) - {"plateau"}))
def test_every_listed_name_resolves(name):
    needed = {
        "exponential": {"gamma": 0.9},
        "step": {"every": 3},
        "steplr": {"step_size": 2},
        "multisteplr": {"milestones": [2]},
        "lambdalr": {"lr_lambda": lambda epoch: 1.0},
        "multiplicativelr": {"lr_lambda": lambda epoch: 1.0},
        "exponentiallr": {"gamma": 0.9},
        "cosineannealinglr": {"T_max": 6},
        "cosineannealingwarmrestarts": {"T_0": 2},
        "cycliclr": {"base_lr": 0.1, "max_lr": 0.2},
        "onecyclelr": {"max_lr": 0.2},
    }
    optimizer = make_optimizer(momentum=0.9)
    schedule = resolve_scheduler(name.upper(), optimizer, arguments=needed.get(name))
    schedule.start(**RUN)
    losses = rows(*[1.0] * EPOCHS)
    assert all(0 <= rate <= 0.8 for rate, _ in drive(schedule, optimizer, rows=losses))
