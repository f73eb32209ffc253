"""When to save, and which checkpoint is the best: `Checkpointing`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from velodrome.errors import ArgumentError

__all__ = ["Checkpointing"]

_SMALLER_IS_BETTER = ("loss", "error", "perplexity")
_LARGER_IS_BETTER = ("accuracy", "auc", "f1", "top")


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """How often to save, how many to keep, and which number decides what is best.

    Args:
        every: a duration such as "every epoch" or "every 100 steps"; None saves only at the end.
        keep_last: newest checkpoints to keep.
        keep_best: best ones to keep besides.
        monitor: the value that decides, by its name in the epoch row.
        mode: "min", "max", or "auto": by the monitor's name.
    """

    every: str | None = "every epoch"
    keep_last: int = 2
    keep_best: int = 1
    monitor: str = "val/loss"
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        if self.every is not None and (not isinstance(self.every, str) or not self.every.strip()):
            raise ArgumentError(
                f"every={self.every!r} is not a duration. It is a text such as 'every epoch' or 'every 100 "
                f"steps', "
                f"or None to save only at the end.",
                argument="every",
            )
        _check_count("keep_last", self.keep_last, 2, "with one, a torn newest checkpoint would leave none to load")
        _check_count("keep_best", self.keep_best, 0, "0 keeps none for being the best")
        if not isinstance(self.monitor, str) or not self.monitor.strip():
            raise ArgumentError(
                f"monitor={self.monitor!r} is not the name of a value. Name a column of the history, such as "
                f"'val/loss'.",
                argument="monitor",
            )
        if self.mode not in ("auto", "min", "max"):
            raise ArgumentError(f"mode={self.mode!r} is unknown. It is 'auto', 'min' or 'max'.", argument="mode")
        _ = self.direction  # an undecidable "auto" is refused here, not at the first evaluation

    @property
    def direction(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger value is better."""
        if self.mode != "auto":
            return self.mode
        quantity = self.monitor.lower().rsplit("/", 1)[-1]
        if any(word in quantity for word in _SMALLER_IS_BETTER):
            return "min"
        if any(word in quantity for word in _LARGER_IS_BETTER):
            return "max"
        raise ArgumentError(
            f"monitor={self.monitor!r} does not say whether smaller is better. mode='auto' knows names with "
            f"{', '.join(_SMALLER_IS_BETTER)} (min) and {', '.join(_LARGER_IS_BETTER)} (max). "
            f"Give mode='min' or mode='max'.",
            argument="mode",
        )

    def is_better(self, new: float, old: float | None) -> bool:
        """Return whether `new` beats `old`, the best so far; NaN beats nothing, any number beats NaN."""
        if math.isnan(new):
            return False
        if old is None or math.isnan(old):
            return True
        return new < old if self.direction == "min" else new > old


def _check_count(name: str, value: object, least: int, reason: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(
            f"{name}={value!r} is not a whole number from {least} up: {reason}. Use {name}={max(least, 1)} or more.",
            argument=name,
        )
