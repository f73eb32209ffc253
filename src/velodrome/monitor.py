"""Which value of an epoch decides, what is better, and which were the best: for checkpoints and for stopping."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Monitor", "Ranking", "find_direction", "is_metric"]

_SMALLER_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse", "nll")
_LARGER_IS_BETTER = (
    "accuracy", "acc", "auc", "auroc", "f1", "top", "precision", "recall", "score", "iou", "dice", "r2",
)  # fmt: skip
# So short that they are parts of other words (stop_rate, accept_rate): they must stand by themselves, as in top5 and val_acc.
_WHOLE_WORDS = {word: re.compile(rf"(?<![a-z]){word}k?(?![a-z])") for word in ("top", "acc", "nll")}


def is_metric(name: str) -> bool:
    """Return whether a value of a row is a metric: those have the name of what was measured before a slash, as in "val/loss".

    >>> [name for name in ("epoch", "lr", "lr/head", "val/loss", "test/f1") if is_metric(name)]
    ['val/loss', 'test/f1']
    """
    return "/" in name and not name.startswith("lr/")


def find_direction(name: str) -> Literal["min", "max"] | None:
    """Return whether a smaller or a larger value is better, as far as the name tells; None where it does not.

    >>> find_direction("val/loss"), find_direction("val/top5"), find_direction("val/stop_rate")
    ('min', 'max', None)
    """
    quantity = name.lower().rsplit("/", 1)[-1]
    if any(_says(quantity, word) for word in _SMALLER_IS_BETTER):
        return "min"
    return "max" if any(_says(quantity, word) for word in _LARGER_IS_BETTER) else None


def _says(quantity: str, word: str) -> bool:
    whole = _WHOLE_WORDS.get(word)
    return word in quantity if whole is None else whole.search(quantity) is not None


@dataclass(frozen=True)
class Monitor:
    """A value by its name in the epoch's row.

    Args:
        name: such as "val/loss".
        mode: whether a smaller or a larger value is better; "auto" decides by the name.
    Raises:
        ArgumentError: no name, an unknown mode, or a name that does not say what is better.
    """

    name: str
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ArgumentError(
                f"monitor={self.name!r} is not the name of a value. Name a column of the history, such as 'val/loss'.",
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
        found = find_direction(self.name)
        if found is not None:
            return found
        raise ArgumentError(
            f"monitor={self.name!r} does not say whether smaller is better. mode='auto' knows names with "
            f"{', '.join(_SMALLER_IS_BETTER)} (min) and {', '.join(_LARGER_IS_BETTER)} (max). "
            f"Give mode='min' or mode='max'.",
            argument="mode",
        )

    def is_better(self, new: float, old: float | None, *, min_delta: float = 0.0) -> bool:
        """Return whether `new` beats `old`, the best so far, by more than `min_delta`; NaN beats nothing, any number beats NaN."""
        if math.isnan(new):
            return False
        if old is None or math.isnan(old):
            return True
        return new < old - min_delta if self.direction == "min" else new > old + min_delta

    def value_in(self, row: Mapping[str, Any], *, asked_by: str) -> float:
        """Return the value of an epoch.

        Args:
            row: of the epoch.
            asked_by: who wants it, for the error.
        Raises:
            ArgumentError: it is not there; the names that are follow.
        """
        value = row.get(self.name)
        if isinstance(value, (int, float)):
            return float(value)
        known = [name for name in row if is_metric(name)]
        hint = "" if any(name.startswith("val/") for name in known) else " This run has no validation data."
        raise ArgumentError(
            f"{asked_by} monitors {self.name!r}, which is not among the values of an epoch.{hint} {nearest(self.name, known)}",
            argument="monitor",
        )


class Ranking:
    """The best values so far, each with the step that it belongs to; of equal ones the earlier is better.

    Args:
        monitor: says what is better.
        keep: how many.
    """

    def __init__(self, monitor: Monitor, keep: int) -> None:
        self._monitor = monitor
        self._keep = keep
        self.places: list[tuple[float, int]] = []
        """value and step, the best first"""

    @property
    def steps(self) -> list[int]:
        """The steps of the best values, the best first."""
        return [step for _, step in self.places]

    def add(self, value: float, step: int) -> bool:
        """Return whether a value is among the best, and take it down if so; NaN never is."""
        rank = sum(1 for other, _ in self.places if not self._monitor.is_better(value, other))
        if rank >= self._keep or math.isnan(value):
            return False
        self.places.insert(rank, (value, step))
        del self.places[self._keep :]
        return True

    def load(self, places: Iterable[Iterable[Any]]) -> None:
        """Go on from the places of another one, as a checkpoint holds them."""
        self.places = [(value, step) for value, step in places]
