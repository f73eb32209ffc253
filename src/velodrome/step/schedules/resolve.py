"""What the user gave as `scheduler`, turned into a schedule."""

from __future__ import annotations

import functools
import inspect
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from velodrome.errors import ArgumentError, nearest
from velodrome.step.schedules.base import NO_SCHEDULE, Schedule
from velodrome.step.schedules.drops import Exponential, Step
from velodrome.step.schedules.falls import Cosine, Linear, OneCycle, Polynomial, WarmupStableDecay
from velodrome.step.schedules.named import CurveSchedule
from velodrome.step.schedules.plateau import PlateauSchedule, direction_of
from velodrome.step.schedules.spans import Interval, read_interval
from velodrome.step.schedules.spec import Constant
from velodrome.step.schedules.torch_schedule import TorchSchedule, default_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer

__all__ = ["known_schedules", "resolve_scheduler"]

_SPECS: dict[str, type[Constant]] = {
    kind.name: kind for kind in (Constant, Linear, Cosine, OneCycle, Exponential, Step, Polynomial, WarmupStableDecay)
}
_PLATEAU = "plateau"
_OF_SCHEDULERS = {"sequentiallr", "chainedscheduler"}  # their arguments are schedulers: a text cannot give those
_WARMUP = tuple(field.name for field in fields(Constant))


def known_schedules() -> list[str]:
    """Return the names that `scheduler=` accepts: our own, and the classes of `torch.optim.lr_scheduler` in lower case."""
    return sorted([*_SPECS, _PLATEAU, *_classes()])


def resolve_scheduler(
    scheduler: object,
    optimizer: Optimizer,
    *,
    arguments: Mapping[str, Any] | None = None,
    every: str | None = None,
    monitor: str | None = None,
) -> Schedule:
    """Turn what the user gave as `scheduler` into a schedule of the optimizer's learning rates.

    Our own names are read per update and fitted to the run; `OneCycleLR` and `CyclicLR` are stepped per update, every other torch
    scheduler per epoch, and `ReduceLROnPlateau` per epoch on `monitor`.

    Args:
        scheduler: None; a scheduler built on this optimizer; a factory `optimizer -> scheduler`; or a name.
        optimizer: as it is used in the run, its learning rates being the peaks of named schedules.
        arguments: for a name or a factory.
        every: "step" (an update), "epoch", or so many of them: how often the schedule moves on.
        monitor: for `plateau` and `ReduceLROnPlateau`: the name of a value in the epoch's row.
    Raises:
        ArgumentError: an unknown name or argument, a scheduler built on another optimizer, a second scheduler for one that
            has one already, or arguments without anything to take them.
    """
    arguments = dict(arguments or {})
    interval = None if every is None else read_interval(every)
    if scheduler is None:
        _refuse_extras(arguments, every, monitor, "without a scheduler")
        return NO_SCHEDULE
    if isinstance(scheduler, LRScheduler):
        _refuse_extras(arguments, None, None, f"with a {type(scheduler).__name__} that is made already")
        return _adopt(scheduler, optimizer, interval, monitor, origin="scheduler")
    if isinstance(scheduler, (list, tuple)):
        raise ArgumentError(
            f"scheduler={type(scheduler).__name__} of {len(scheduler)}: two schedules for one group would overwrite each other. "
            f"Give one: torch's SequentialLR runs several one after another, its ChainedScheduler multiplies them."
        )
    if isinstance(scheduler, str):
        return _by_name(scheduler, optimizer, arguments, interval, monitor)
    if callable(scheduler):
        return _by_factory(scheduler, optimizer, arguments, interval, monitor)
    raise ArgumentError(
        f"scheduler={scheduler!r} is no scheduler. Give a name, a scheduler of torch.optim.lr_scheduler, or a function "
        f"optimizer -> scheduler."
    )


def _by_name(
    name: str, optimizer: Optimizer, arguments: dict[str, Any], interval: Interval | None, monitor: str | None
) -> Schedule:
    known, key = _classes(), name.lower()
    if key in _OF_SCHEDULERS:
        raise ArgumentError(
            f"scheduler={name!r} is made of other schedulers, which a name cannot bring. Build it and give it as it is."
        )
    if key in known:
        return _by_factory(known[key], optimizer, arguments, interval, monitor)
    if key == _PLATEAU:
        return _plateau(optimizer, arguments, interval, monitor)
    spec = _SPECS.get(key)
    if spec is None:
        raise ArgumentError(f"scheduler={name!r} is not a known schedule. {nearest(name, known_schedules())}")
    _refuse_monitor(monitor, key)
    _refuse_second(optimizer)
    return CurveSchedule(_make_spec(spec, arguments), optimizer, interval or Interval(1, "steps"))


def _plateau(
    optimizer: Optimizer, arguments: dict[str, Any], interval: Interval | None, monitor: str | None
) -> Schedule:
    _refuse_second(optimizer)
    own = {name: arguments.pop(name) for name in _WARMUP if name in arguments}
    _check_arguments(_PLATEAU, arguments, [*_parameters(ReduceLROnPlateau), *_WARMUP])
    arguments.setdefault("mode", direction_of(monitor))
    return PlateauSchedule(
        _call_class(ReduceLROnPlateau, optimizer, arguments),
        optimizer,
        interval or Interval(1, "epochs"),
        monitor=monitor,
        warmup=Constant(**own) if own else None,
        kind=_PLATEAU,
    )


def _by_factory(
    factory: Callable[..., Any],
    optimizer: Optimizer,
    arguments: dict[str, Any],
    interval: Interval | None,
    monitor: str | None,
) -> Schedule:
    _refuse_second(optimizer)
    kind, given = factory, arguments
    if isinstance(factory, functools.partial):
        kind, given = factory.func, {**factory.keywords, **arguments}
    if not isinstance(kind, type) or not issubclass(kind, LRScheduler):
        made = factory(optimizer, **arguments)
        name = getattr(factory, "__name__", type(factory).__name__)
        if not isinstance(made, LRScheduler):
            raise ArgumentError(
                f"The scheduler factory {name} returned a {type(made).__name__}. It must return a scheduler of "
                f"torch.optim.lr_scheduler, built on the optimizer that it is given."
            )
        return _adopt(made, optimizer, interval, monitor, origin=f"what the scheduler factory {name} returned")
    _check_arguments(kind.__name__, arguments, _parameters(kind))
    if (
        issubclass(kind, OneCycleLR)
        and "total_steps" not in given
        and not {"epochs", "steps_per_epoch"} <= given.keys()
    ):
        _refuse_monitor(monitor, kind.__name__)

        def make(total_steps: int) -> LRScheduler:
            return _call_class(factory, optimizer, {**arguments, "total_steps": total_steps})

        return TorchSchedule(optimizer, interval or default_interval(kind), make=make, kind=kind.__name__)
    return _adopt(_call_class(factory, optimizer, arguments), optimizer, interval, monitor, origin="scheduler")


def _adopt(
    scheduler: LRScheduler, optimizer: Optimizer, interval: Interval | None, monitor: str | None, *, origin: str
) -> Schedule:
    kind = type(scheduler).__name__
    if getattr(scheduler, "optimizer", None) is not optimizer:
        raise ArgumentError(
            f"{origin} is a {kind} built on another optimizer than the {type(optimizer).__name__} of this run, whose learning "
            f"rates it would never change. Build it on this optimizer, or give a function optimizer -> scheduler."
        )
    interval = interval or default_interval(scheduler)
    if isinstance(scheduler, ReduceLROnPlateau):
        return PlateauSchedule(scheduler, optimizer, interval, monitor=monitor, kind=kind)
    _refuse_monitor(monitor, kind)
    return TorchSchedule(optimizer, interval, scheduler=scheduler, kind=kind)


def _make_spec(kind: type[Constant], arguments: dict[str, Any]) -> Constant:
    known = fields(kind)
    _check_arguments(kind.name, arguments, [field.name for field in known])
    for field in known:
        if field.default is MISSING and field.name not in arguments:
            raise ArgumentError(
                f"scheduler={kind.name!r} needs {field.name!r} among its arguments.", argument=field.name
            )
    return kind(**arguments)


def _call_class(factory: Callable[..., Any], optimizer: Optimizer, arguments: dict[str, Any]) -> Any:
    try:
        return factory(optimizer, **arguments)
    except (ValueError, TypeError) as error:
        name = getattr(factory, "__name__", None) or getattr(getattr(factory, "func", None), "__name__", "?")
        raise ArgumentError(f"torch.optim.lr_scheduler.{name} refused its arguments: {error}") from error


def _classes() -> dict[str, type[LRScheduler]]:
    return {
        name.lower(): kind
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind)
        and issubclass(kind, LRScheduler)
        and not name.startswith("_")
        and kind is not LRScheduler
        and name.lower() not in _OF_SCHEDULERS
    }


def _parameters(kind: type[LRScheduler]) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in ("optimizer", "last_epoch")]


def _check_arguments(name: str, arguments: Mapping[str, Any], known: list[str]) -> None:
    for argument in arguments:
        if argument not in known:
            raise ArgumentError(
                f"scheduler {name!r} has no argument {argument!r}. {nearest(argument, known)}", argument=argument
            )


def _refuse_extras(arguments: Mapping[str, Any], every: object, monitor: object, what: str) -> None:
    extras = [*sorted(arguments), *(["every"] if every else []), *(["monitor"] if monitor else [])]
    if extras:
        raise ArgumentError(
            f"{', '.join(extras)} was given {what}, so nothing would take it. Leave it out, or give a scheduler by name."
        )


def _refuse_monitor(monitor: str | None, kind: str) -> None:
    if monitor is not None:
        raise ArgumentError(
            f"monitor={monitor!r} was given with {kind}, which looks at no value. "
            f'Leave it out, or give scheduler="plateau".',
            argument="monitor",
        )


def _refuse_second(optimizer: Optimizer) -> None:
    """Refuse a further scheduler: torch leaves a mark on the `step` of an optimizer that one was built on."""
    if hasattr(getattr(optimizer, "step", None), "_wrapped_by_lr_sched"):
        raise ArgumentError(
            f"The {type(optimizer).__name__} has a torch scheduler built on it already: two schedules for one group would "
            f"overwrite each other. Give that scheduler itself as scheduler=, or a new optimizer."
        )
