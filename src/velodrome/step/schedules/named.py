"""A curve over the updates of a run, put on an optimizer: the state is a counter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.step.schedules.base import Schedule, check_kind
from velodrome.step.schedules.rates import LearningRates
from velodrome.step.schedules.spans import Interval, RunLength

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer

    from velodrome.step.schedules.spec import Constant

__all__ = ["CurveSchedule"]


class CurveSchedule(Schedule):
    """A schedule by name: what its spec makes of the run, as a pure function of the number of updates done.

    Args:
        spec: name and arguments.
        optimizer: its groups' learning rates are the peaks.
        interval: how often the curve is read; between two readings the learning rate stays.
    """

    def __init__(self, spec: Constant, optimizer: Optimizer, interval: Interval) -> None:
        self._spec = spec
        self._rates = LearningRates(optimizer)
        self._interval = interval
        self._stride = interval.amount if interval.unit == "steps" else 0
        self._run: RunLength | None = None
        self._num_updates = 0
        self._num_epochs = 0
        self._read_at = 0  # the update index whose learning rate is set now
        if not spec.needs_length:  # then wrong arguments show at once
            spec.curve(spec.fit(RunLength()), 1.0)

    @property
    def needs_length(self) -> bool:
        """Whether the curve follows the run's length or counts in epochs."""
        return self._spec.needs_length

    @property
    def past_end(self) -> tuple[int, int] | None:
        """Return the updates done and the curve's length, once a curve fitted to the run has ended: its last value stays."""
        is_fitted = self._run is not None and self._spec.follows_length and self._spec.length is None
        total = self._run.total if is_fitted and self._run is not None else None
        return None if total is None or self._num_updates <= total else (self._num_updates, total)

    def start(self, *, steps_per_epoch: int | None, epochs: int | None, steps: int | None) -> None:
        """Fit the curve to the run and set the learning rate of the present position."""
        run = self._spec.fit(RunLength(steps_per_epoch=steps_per_epoch, epochs=epochs, steps=steps))
        self._rates.follow(self._spec, run)
        self._run = run
        self._rates.set(self._read_at)

    def after_update(self) -> None:
        """Set the learning rate of the next update."""
        self._num_updates += 1
        if self._stride and self._num_updates % self._stride == 0:
            self._read()

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Set the learning rate of the next epoch, when it is to change per epoch."""
        self._num_epochs += 1
        if not self._stride and self._num_epochs % self._interval.amount == 0:
            self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return the position: updates and epochs done, and the update whose learning rate is set."""
        return {
            "kind": self._spec.name,
            "updates": self._num_updates,
            "epochs": self._num_epochs,
            "read_at": self._read_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position. Arguments and length are this run's own, which may be longer than the saved one."""
        check_kind(state, self._spec.name)
        self._num_updates, self._num_epochs = int(state["updates"]), int(state["epochs"])
        self._read_at = int(state["read_at"])
        if self._run is not None:
            self._rates.refresh()
            self._rates.set(self._read_at)

    def describe(self) -> str:
        """Return the curve in words."""
        if self._run is None and self._spec.needs_length:
            return f"{self._spec.name}, fitted to the run when it starts, {self._interval}"
        run = self._spec.fit(RunLength()) if self._run is None else self._run
        return f"{self._spec.summary(run)}, {self._interval}"

    def _read(self) -> None:
        self._read_at = self._num_updates
        self._rates.set(self._read_at)
