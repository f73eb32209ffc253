"""From the rows of a history to curves: which metrics there are, their gaps, and where each was best."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Curve", "Metric", "collect_metrics"]

_FRACTION = re.compile(r"(.*_)?acc(uracy)?|(.*_)?top_?(k|\d+)(_accuracy)?")
_LOWER = re.compile(r"(.*_)?(loss|error|mse|mae|rmse|perplexity|nll)(_.*)?")
_HIGHER = re.compile(r"(.*_)?(f1|auc|auroc|precision|recall|r2|iou|dice)(_.*)?")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot: the epochs at which a value was measured; one that was not finite is NaN, a gap."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def measured(self) -> list[tuple[float, float]]:
        """The points that are numbers."""
        return [point for point in zip(self.epochs, self.values, strict=True) if math.isfinite(point[1])]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One panel: a metric in training and in validation."""

    name: str
    train: Curve
    val: Curve

    @property
    def is_fraction(self) -> bool:
        """Whether people read it as percent."""
        points = self.train.measured + self.val.measured
        return _FRACTION.fullmatch(self.name.lower()) is not None and all(0 <= value <= 1 for _, value in points)

    def find_best(self) -> tuple[float, float] | None:
        """Return epoch and value of the best validation, the first of equals; None if "best" is undefined."""
        name, points = self.name.lower(), self.val.measured
        if not points:
            return None
        if _LOWER.fullmatch(name):
            return min(points, key=lambda point: point[1])
        if _FRACTION.fullmatch(name) or _HIGHER.fullmatch(name):
            return max(points, key=lambda point: point[1])
        return None


def collect_metrics(history: Sequence[Mapping[str, object]]) -> list[Metric]:
    """Return the metrics of the epoch rows: loss first, then accuracy, then the others as they came.

    A row without a value (validation every second epoch) is no gap: the line goes on to the next measured
    one. A value that is there and is not a finite number is a gap.
    """
    rows = [row for row in history if row.get("kind", "epoch") == "epoch"]
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(name for key in row if (name := _find_metric(key))))
    ordered = sorted(names, key=lambda name: (name != "loss", name != "accuracy"))
    metrics = [
        Metric(name=name, train=_collect(rows, "train", name), val=_collect(rows, "val", name)) for name in ordered
    ]
    return [metric for metric in metrics if metric.train.measured or metric.val.measured]


def _find_metric(key: str) -> str:
    split, slash, name = key.partition("/")
    return name if slash and split in ("train", "val") else ""


def _collect(rows: Sequence[Mapping[str, object]], split: str, name: str) -> Curve:
    key = f"{split}/{name}"
    points = [(_read_epoch(row, index), _as_number(row[key])) for index, row in enumerate(rows, 1) if key in row]
    return Curve(epochs=tuple(epoch for epoch, _ in points), values=tuple(value for _, value in points))


def _read_epoch(row: Mapping[str, object], index: int) -> float:
    epoch = _as_number(row.get("epoch"))
    return epoch if math.isfinite(epoch) else float(index)


def _as_number(value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return math.nan
