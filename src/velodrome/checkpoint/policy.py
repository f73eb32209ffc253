"""When to save, and which checkpoint is the best: `Checkpointing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from velodrome.errors import ArgumentError
from velodrome.monitor import Monitor

__all__ = ["Checkpointing"]


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """How often to save, how many to keep, and which number decides what is best.

    Args:
        every: a duration such as "every epoch" or "every 100 steps"; None saves only at the end.
        keep_last: newest checkpoints to keep.
        keep_best: best ones to keep besides.
        monitor: the value that decides, by its name in the epoch row.
        mode: "min", "max", or "auto": by the monitor's name.
        keep_every: a duration such as "10 epochs" or "1000 steps": each time so much is done, the next checkpoint is kept for good.
        background: write while training goes on: a save then only copies the state, into host memory that is kept for the next
            one. A save that comes while the one before is still being written waits for it.
        max_failures: stop the run after so many saves in a row that failed. None never stops it: a disk may have room again
            tomorrow, and a run that was stopped cannot save either.
    """

    every: str | None = "every epoch"
    keep_last: int = 2
    keep_best: int = 1
    monitor: str = "val/loss"
    mode: Literal["auto", "min", "max"] = "auto"
    keep_every: str | None = None
    background: bool = False
    max_failures: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (not isinstance(self.every, str) or not self.every.strip()):
            raise ArgumentError(
                f"every={self.every!r} is not a duration. It is a text such as 'every epoch' or 'every 100 "
                f"steps', "
                f"or None to save only at the end.",
                argument="every",
            )
        if self.keep_every is not None and (not isinstance(self.keep_every, str) or not self.keep_every.strip()):
            raise ArgumentError(
                f"keep_every={self.keep_every!r} is not a duration. It is a text such as '10 epochs' or '1000 steps', or None to keep no "
                f"checkpoint for good.",
                argument="keep_every",
            )
        if not isinstance(self.background, bool):
            raise ArgumentError(f"background={self.background!r} is not True or False.", argument="background")
        if self.max_failures is not None:
            _check_count("max_failures", self.max_failures, 1, "None goes on however many saves fail")
        _check_count("keep_last", self.keep_last, 2, "with one, a torn newest checkpoint would leave none to load")
        _check_count("keep_best", self.keep_best, 0, "0 keeps none for being the best")
        _ = self.by  # what is wrong about monitor and mode is refused here, not at the first evaluation

    @property
    def by(self) -> Monitor:
        """The value that decides, and what is better."""
        return Monitor(self.monitor, self.mode)

    @property
    def direction(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger value is better."""
        return self.by.direction

    def is_better(self, new: float, old: float | None) -> bool:
        """Return whether `new` beats `old`, the best so far; NaN beats nothing, any number beats NaN."""
        return self.by.is_better(new, old)


def _check_count(name: str, value: object, least: int, reason: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(
            f"{name}={value!r} is not a whole number from {least} up: {reason}. Use {name}={max(least, 1)} or more.",
            argument=name,
        )
