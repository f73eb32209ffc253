"""When the time that a run was given is over, and how long before that it has to stop so that its last save is whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from velodrome.errors import ArgumentError
from velodrome.loop.durations import Duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NO_DEADLINE", "Deadline", "Limit", "estimate_save_s", "job_end", "parse_stop_after"]

JOB_END = "SLURM_JOB_END_TIME"
_LEAST_RESERVE_S = 5.0
"""for what comes besides the save: the end of the records, and the process's own end"""
_LARGEST_RESERVE = 0.5
"""of the whole time: else a run with slow saves would never come to a step"""
_BYTES_PER_S = 200e6
"""with hashes and fsync on a slow disk, until the run has measured its own"""
_COPIES = 3
"""the weights and, with Adam, two numbers for each"""


class Limit(Protocol):
    """A deadline, or none."""

    def is_near(self, now: float) -> bool:
        """Return whether to stop now; asked every so often, of the same clock."""
        ...

    def count_save(self, seconds: float) -> None:
        """A save took so long."""
        ...


class Deadline:
    """Stops early enough for one more save, of which the slowest so far is the measure.

    Stops are possible after a batch. So a batch that would end too late is not begun: the time between two questions is that of
    a batch, or more. One that is long once, for compilation say, is not expected again.

    Args:
        begins_at, ends_at: by a clock that never jumps, in seconds.
        save_s: how long a save takes, as far as it is known.
    """

    def __init__(self, *, begins_at: float, ends_at: float, save_s: float) -> None:
        self._begins_at = begins_at
        self._ends_at = ends_at
        self._save_s = save_s
        self._is_measured = False
        self._asked_at = begins_at
        self._gap = 0.0

    @property
    def reserve_s(self) -> float:
        """How long before its end the run has to stop."""
        whole = max(0.0, self._ends_at - self._begins_at)
        wanted = max(2 * self._save_s, min(_LEAST_RESERVE_S, 0.1 * whole))
        return min(wanted, _LARGEST_RESERVE * whole)

    @property
    def leave_at(self) -> float:
        """When to stop at the latest."""
        return self._ends_at - self.reserve_s

    def is_near(self, now: float) -> bool:
        """Return whether a batch more, as long as those before, would be one too many."""
        gap, before = now - self._asked_at, self._gap
        self._asked_at, self._gap = now, gap
        return now + min(gap, before) >= self.leave_at

    def count_save(self, seconds: float) -> None:
        """A save took so long: the first one takes the place of the estimate."""
        self._save_s = max(self._save_s, seconds) if self._is_measured else seconds
        self._is_measured = True


class _NoDeadline:
    def is_near(self, now: float) -> bool:
        return False

    def count_save(self, seconds: float) -> None:
        pass


NO_DEADLINE = _NoDeadline()
"""The run has all the time it wants."""


def estimate_save_s(parameter_bytes: int) -> float:
    """Return how long a save takes, as long as there was none."""
    return _COPIES * parameter_bytes / _BYTES_PER_S


def parse_stop_after(stop_after: str | Duration | None) -> float:
    """Return the seconds of a duration; infinitely many for None.

    Raises:
        ArgumentError: it is no duration, or one in epochs, steps or samples.
    """
    if stop_after is None:
        return math.inf
    duration = parse_duration(stop_after, name="stop_after")
    if duration.unit != "seconds":
        raise ArgumentError(
            f'stop_after={str(stop_after)!r} is in {duration.unit}. It must be a time, such as "50 minutes"; give fit {duration.unit} of '
            f"its own for that."
        )
    return duration.amount


def job_end(environment: Mapping[str, str], *, unix_now: float) -> tuple[float, str]:
    """Return in how many seconds the job is ended, as its scheduler says, and a line about what cannot be true.

    Args:
        environment: the process's variables; `SLURM_JOB_END_TIME` in seconds since 1970.
        unix_now: by the same clock.
    Returns:
        Infinitely many where nothing is said or it cannot be true.
    """
    text = environment.get(JOB_END, "").strip()
    if not text:
        return math.inf, ""
    try:
        left = float(text) - unix_now
    except ValueError:
        left = math.nan
    if not math.isfinite(left):
        return (
            math.inf,
            f"{JOB_END}={text!r} is no number of seconds since 1970: the run does not know when its job ends.",
        )
    if left <= 0:
        return math.inf, f"{JOB_END}={text} passed {-left:.0f} seconds ago: the run does not know when its job ends."
    return left, ""
