"""Which value of an epoch decides, what is better, and which were the best: for checkpoints and for stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Monitor", "Ranking"]

_SMALLER_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse")
_LARGER_IS_BETTER = ("accuracy", "auc", "auroc", "f1", "top", "precision", "recall", "score", "iou", "dice", "r2")


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
        quantity = self.name.lower().rsplit("/", 1)[-1]
        if any(word in quantity for word in _SMALLER_IS_BETTER):
            return "min"
        if any(word in quantity for word in _LARGER_IS_BETTER):
            return "max"
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
        known = [name for name in row if "/" in name]
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
