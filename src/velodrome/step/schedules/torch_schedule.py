"""Schedulers of `torch.optim.lr_scheduler`, and others of that class, stepped when they ought to be."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from velodrome.errors import ArgumentError
from velodrome.step.schedules.base import Schedule, check_kind
from velodrome.step.schedules.rates import set_rate
from velodrome.step.schedules.spans import Interval, RunLength

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["TorchSchedule", "default_interval", "from_plain", "to_plain"]


def default_interval(scheduler: object) -> Interval:
    """Return how often its documentation steps it: one-cycle and cyclic ones per update, all others per epoch.

    Args:
        scheduler: an instance or a class.
    """
    kinds = [scheduler] if isinstance(scheduler, type) else [type(part) for part in _parts(scheduler)]
    is_per_update = any(issubclass(kind, (OneCycleLR, CyclicLR)) for kind in kinds)
    return Interval(1, "steps" if is_per_update else "epochs")


class TorchSchedule(Schedule):
    """Steps a torch scheduler per update or per epoch.

    Past the end of a `OneCycleLR`, where torch goes up for one step and then raises, the last learning rate holds.

    Args:
        optimizer: that of the scheduler.
        interval: how often to step it.
        scheduler: ready made; or None together with `make`.
        make: makes it from its number of steps in the run, for one that must be told: a `OneCycleLR` without `total_steps`.
        kind: its name, for people and for the saved state.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        interval: Interval,
        *,
        scheduler: LRScheduler | None = None,
        make: Callable[[int], LRScheduler] | None = None,
        kind: str,
    ) -> None:
        self._optimizer = optimizer
        self._interval = interval
        self._make = make
        self._kind = kind
        self._scheduler = scheduler
        self._count = 0  # updates or epochs, whichever the interval counts
        self._pending: Mapping[str, Any] | None = None

    @property
    def needs_length(self) -> bool:
        """Whether the scheduler is still to be made with the run's length."""
        return self._make is not None

    def start(self, *, steps_per_epoch: int | None, epochs: int | None, steps: int | None) -> None:
        """Make the scheduler if it waits for the run's length. One that is made keeps its own."""
        if self._scheduler is not None or self._make is None:
            return
        run = RunLength(steps_per_epoch=steps_per_epoch, epochs=epochs, steps=steps)
        total = run.total if self._interval.unit == "steps" else run.total_epochs
        if total is None:
            raise ArgumentError(
                f"{self._kind} follows the length of the run, which cannot be known: it has no budget in updates, and its "
                f"epochs no known number of updates. Give steps= to the run, or total_steps= to the scheduler.",
                argument="total_steps",
            )
        pending, groups = self._pending, self._optimizer.param_groups
        loaded = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        self._scheduler = self._make(max(1, total // self._interval.amount))
        if pending is not None:
            # Making it has set its first learning rate and momentum; those of the saved position were there before.
            if pending["scheduler"]:
                for group, options in zip(groups, loaded, strict=True):
                    group.update(options)
            self.load_state_dict(pending)

    def after_update(self) -> None:
        """Step the scheduler if it counts updates."""
        if self._interval.unit == "steps":
            self._tick()

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Step the scheduler if it counts epochs."""
        if self._interval.unit == "epochs":
            self._tick()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state in plain values, and the count of this one."""
        state = dict(self._pending or {"kind": self._kind, "count": 0, "scheduler": {}})
        if self._scheduler is not None:
            own = to_plain(self._scheduler.state_dict(), place=f"The state of {self._kind}")
            state |= {"count": self._count, "scheduler": own}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the scheduler's own state and set the learning rates that it gave last."""
        check_kind(state, self._kind)
        if self._scheduler is None:
            self._pending = dict(state)
            return
        self._pending = None
        self._count = int(state["count"])
        if not state["scheduler"]:  # saved before the run began
            return
        current = self._scheduler.state_dict()
        self._scheduler.load_state_dict({**current, **from_plain(state["scheduler"], like=current)})
        rates = getattr(self._scheduler, "_last_lr", None) or []
        for group, lr in zip(self._optimizer.param_groups, rates, strict=False):
            set_rate(group, lr)

    def describe(self) -> str:
        """Return its class and how often it is stepped."""
        if self._scheduler is None:
            return f"{self._kind}, fitted to the run when it starts, {self._interval}"
        total = getattr(self._scheduler, "total_steps", None)
        word = "updates" if self._interval.unit == "steps" else "epochs"
        over = f" over {total * self._interval.amount:,} {word}" if isinstance(total, int) else ""
        return f"{self._kind}{over}, {self._interval}"

    def _tick(self) -> None:
        self._count += 1
        scheduler = self._scheduler
        if scheduler is None or self._count % self._interval.amount:
            return
        if isinstance(scheduler, OneCycleLR) and scheduler.last_epoch >= scheduler.total_steps - 1:
            return  # its last value; torch would go up again for one step and then raise
        if self._count == self._interval.amount:
            # The loop calls this after an update, whichever way that was made. torch only sees the ones through
            # `optimizer.step`, and would warn about the order otherwise: in graph replays, or after an epoch of skipped steps.
            self._optimizer._opt_called = True  # type: ignore[attr-defined]
        scheduler.step()


def to_plain(value: Any, *, place: str) -> Any:
    """Return texts, numbers, lists and tables for what a scheduler's state holds; functions are left out.

    Raises:
        ArgumentError: something else is in it, with its place.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Tensor):
        return value.tolist()  # SYNC: once a checkpoint
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Counter):
        return [[to_plain(key, place=place), count] for key, count in sorted(value.items())]
    if isinstance(value, Mapping):
        kept = {str(name): inner for name, inner in value.items() if not callable(inner)}
        return {name: to_plain(inner, place=f"{place}[{name!r}]") for name, inner in kept.items()}
    if isinstance(value, (list, tuple)):
        return [None if callable(inner) else to_plain(inner, place=place) for inner in value]
    raise ArgumentError(
        f"{place} is a {type(value).__name__}. A schedule is saved as texts, numbers, lists and tables: "
        f"leave it out of the scheduler's state_dict()."
    )


def from_plain(value: Any, *, like: Any) -> Any:
    """Return what `to_plain` made plain, with the types of a state of the same scheduler."""
    if isinstance(like, Tensor) and isinstance(value, (int, float, list)):
        return like.new_tensor(value)
    if isinstance(like, Counter):
        return Counter(dict(value))
    if isinstance(like, Mapping) and isinstance(value, Mapping):
        return {name: from_plain(inner, like=like.get(name)) for name, inner in value.items()}
    if isinstance(like, (list, tuple)) and isinstance(value, list):
        likes = [*like, *[None] * (len(value) - len(like))]
        return type(like)(from_plain(inner, like=other) for inner, other in zip(value, likes, strict=False))
    return value


def _parts(scheduler: object) -> Iterator[object]:
    """Yield the scheduler and those that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)
