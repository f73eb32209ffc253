"""`ReduceLROnPlateau`: fed with a value of each epoch's row, after a warm-up if there is one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.monitor import Monitor
from velodrome.step.schedules.base import Schedule, check_kind
from velodrome.step.schedules.rates import LearningRates, set_rate
from velodrome.step.schedules.spans import Interval, RunLength
from velodrome.step.schedules.torch_schedule import from_plain, to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    from velodrome.step.schedules.spec import Constant

__all__ = ["PlateauSchedule", "direction_of"]

_DEFAULT_MONITORS = ("val/loss", "train/loss")


def direction_of(monitor: str | None) -> str:
    """Return "min" or "max": what is better for a value of that name.

    Raises:
        ArgumentError: the name does not say.
    """
    return Monitor(monitor or _DEFAULT_MONITORS[0]).direction


class PlateauSchedule(Schedule):
    """Lowers the learning rate when a value of the epoch's row no longer gets better.

    A value that is not finite is not fed: it is neither an improvement nor an epoch without one. An epoch whose row lacks
    the value, because it had no evaluation, is not one either. Without a `monitor` the first row decides for the whole run:
    "val/loss", or "train/loss" when it has none.

    Args:
        scheduler: over `optimizer`.
        optimizer: its groups' learning rates are those after the warm-up.
        interval: in epochs.
        monitor: the value's name; None for the default.
        warmup: its curve is followed per update until it is over; only then is the scheduler fed.
        kind: its name, for people and for the saved state.
    """

    def __init__(
        self,
        scheduler: ReduceLROnPlateau,
        optimizer: Optimizer,
        interval: Interval,
        *,
        monitor: str | None,
        warmup: Constant | None = None,
        kind: str,
    ) -> None:
        if interval.unit != "epochs":
            raise ArgumentError(
                f'every="{interval.amount} {interval.unit}" does not go with {kind}, which looks at a value of the epoch. '
                f'Give every="epoch" or leave it out.',
                argument="every",
            )
        self._scheduler = scheduler
        self._optimizer = optimizer
        self._interval = interval
        self._asked = monitor
        self._monitor: str | None = None  # settled by the first row
        self._kind = kind
        self._warmup = warmup
        self._rates = None if warmup is None else LearningRates(optimizer)
        self._num_warmup = 0
        self._num_updates = 0
        self._num_epochs = 0

    @property
    def needs_length(self) -> bool:
        """Whether the warm-up is a fraction of the run or in epochs."""
        return self._warmup is not None and self._warmup.needs_length

    def start(self, *, steps_per_epoch: int | None, epochs: int | None, steps: int | None) -> None:
        """Set the first learning rate of the warm-up, if there is one."""
        if self._warmup is None or self._rates is None:
            return
        run = self._warmup.fit(RunLength(steps_per_epoch=steps_per_epoch, epochs=epochs, steps=steps))
        self._num_warmup = self._warmup.warmup_updates(run)
        self._rates.follow(self._warmup, run)
        if self._num_updates < self._num_warmup:
            self._rates.set(self._num_updates)

    def after_update(self) -> None:
        """Set the next learning rate of the warm-up."""
        self._num_updates += 1
        if self._rates is not None and self._num_updates <= self._num_warmup:
            self._rates.set(self._num_updates)

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Feed the monitored value.

        Raises:
            ArgumentError: the first row lacks it.
        """
        self._num_epochs += 1
        if self._monitor is None:
            self._monitor = self._settle(row)
        value = row.get(self._monitor)
        is_due = self._num_epochs % self._interval.amount == 0 and self._num_updates >= self._num_warmup
        if is_due and value is not None and math.isfinite(value):
            self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the value that is monitored, and the scheduler's own state."""
        return {
            "kind": self._kind,
            "updates": self._num_updates,
            "epochs": self._num_epochs,
            "monitor": self._monitor,
            "scheduler": to_plain(self._scheduler.state_dict(), place=f"The state of {self._kind}"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position and set the learning rate of it."""
        check_kind(state, self._kind)
        self._num_updates, self._num_epochs = int(state["updates"]), int(state["epochs"])
        self._monitor = state["monitor"]
        current = self._scheduler.state_dict()
        self._scheduler.load_state_dict({**current, **from_plain(state["scheduler"], like=current)})
        for group, lr in zip(self._optimizer.param_groups, self._scheduler.get_last_lr(), strict=False):
            set_rate(group, lr)
        if self._rates is not None and self._num_updates < self._num_warmup:
            self._rates.refresh()
            self._rates.set(self._num_updates)

    def describe(self) -> str:
        """Return what is monitored and when."""
        monitor = self._monitor or self._asked or " or ".join(_DEFAULT_MONITORS)
        after = f" after {self._num_warmup:,} updates of warm-up" if self._num_warmup else ""
        return f"{self._kind} on {monitor} ({self._scheduler.mode}){after}, {self._interval}"

    def _settle(self, row: Mapping[str, Any]) -> str:
        asked = _DEFAULT_MONITORS if self._asked is None else (self._asked,)
        for name in asked:
            if row.get(name) is not None:
                return name
        known = [name for name, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
        raise ArgumentError(
            f"monitor={asked[0]!r} is not among the values of the first epoch. {nearest(asked[0], known)}",
            argument="monitor",
        )
