"""From the rows of a history to curves: which metrics there are, their gaps, and where each was best."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from velodrome.monitor import find_direction, is_metric
from velodrome.report.words import as_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Curve", "Metric", "collect_metrics", "name_split"]

_FRACTION = re.compile(r"(.*_)?acc(uracy)?|(.*_)?top_?(k|\d+)(_accuracy)?")
_SPLITS = {"train": "training", "val": "validation"}


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
    """One panel: a metric in training, in validation, and in evaluations of other names."""

    name: str
    train: Curve
    val: Curve
    others: Mapping[str, Curve] = field(default_factory=dict)
    """by the name of the evaluation, such as "test" """
    direction: Literal["min", "max"] | None = None
    """what is better in validation"""

    @property
    def is_fraction(self) -> bool:
        """Whether people read it as percent."""
        points = [point for curve in self.curves for point in curve.measured]
        return _FRACTION.fullmatch(self.name.lower()) is not None and all(0 <= value <= 1 for _, value in points)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All of them."""
        return self.train, self.val, *self.others.values()

    def find_best(self) -> tuple[float, float] | None:
        """Return epoch and value of the best validation, the first of equals; None if "best" is undefined."""
        points = self.val.measured
        if not points or self.direction is None:
            return None
        return (min if self.direction == "min" else max)(points, key=lambda point: point[1])


def collect_metrics(
    history: Sequence[Mapping[str, object]], directions: Mapping[str, Literal["min", "max"]] | None = None
) -> list[Metric]:
    """Return the metrics of the epoch rows: loss first, then accuracy, then the others as they came.

    A row without a value (validation every second epoch) is no gap: the line goes on to the next measured
    one. A value that is there and is not a finite number is a gap.

    Args:
        history: the rows.
        directions: what is better of values by their names in the rows, where the run was told; of others the name decides.
    """
    rows = [row for row in history if row.get("kind", "epoch") == "epoch"]
    told = directions or {}
    splits: dict[str, dict[str, None]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if is_metric(key)):
        split, _, name = key.partition("/")
        splits.setdefault(name, {})[split] = None
    metrics = [
        Metric(
            name=name,
            train=_collect(rows, "train", name),
            val=_collect(rows, "val", name),
            others={split: _collect(rows, split, name) for split in splits[name] if split not in _SPLITS},
            direction=told.get(f"val/{name}") or find_direction(name),
        )
        for name in sorted(splits, key=lambda name: (name != "loss", name != "accuracy"))
    ]
    return [metric for metric in metrics if any(curve.measured for curve in metric.curves)]


def name_split(split: str) -> str:
    """Return what an evaluation is called in words.

    >>> name_split("val"), name_split("test")
    ('validation', 'test')
    """
    return _SPLITS.get(split, split)


def _collect(rows: Sequence[Mapping[str, object]], split: str, name: str) -> Curve:
    key = f"{split}/{name}"
    points = [(_read_epoch(row, index), _as_finite(row[key])) for index, row in enumerate(rows, 1) if key in row]
    return Curve(epochs=tuple(epoch for epoch, _ in points), values=tuple(value for _, value in points))


def _read_epoch(row: Mapping[str, object], index: int) -> float:
    epoch = _as_finite(row.get("epoch"))
    return epoch if math.isfinite(epoch) else float(index)


def _as_finite(value: object) -> float:
    number = as_number(value)
    return number if math.isfinite(number) else math.nan
