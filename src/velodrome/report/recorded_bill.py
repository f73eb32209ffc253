"""A bill as it was recorded, read back: of a run that never came to say what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.report.words import as_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RecordedBill"]

_PARTS = ("data_wait", "transfer", "forward", "backward", "optimizer", "logging", "callbacks", "saving", "evaluation", "other")  # fmt: skip
_MOST = 1 << 63  # more is no count, and some of it no float either
_NUMBERS = ("workers", "cores", "processes")
_SWITCHES = (
    "workers_are_measured", "takes_workers", "is_stream", "in_memory", "fused_optimizer", "compiled", "saves_in_background",
)  # fmt: skip
_TEXTS = ("workers_failed", "transform")


@dataclass(frozen=True, kw_only=True)
class RecordedBill:
    """What `velodrome.report.findings.find` asks a bill for; whatever a file has instead of a number is none."""

    wall_s: float
    parts: Mapping[str, float]
    callbacks: Mapping[str, float]
    batches: int
    num_long: int
    long_s: float
    dataset: str
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> RecordedBill:
        """Read an event of `events.jsonl`."""
        long = event.get("long_batches")
        long = long if isinstance(long, dict) else {}
        parts = _seconds(event.get("parts_s"))
        kinds: list[tuple[tuple[str, ...], type]] = [(_NUMBERS, int), (_SWITCHES, bool), (_TEXTS, str)]
        return cls(
            wall_s=_time(event.get("wall_s")),
            parts={part: parts.get(part, 0.0) for part in _PARTS},
            callbacks=_seconds(event.get("callbacks_s")),
            batches=_count(event.get("batches")),
            num_long=_count(long.get("num")),
            long_s=_time(long.get("seconds")),
            dataset=str(event.get("dataset") or "the data"),
            facts={
                name: event[name]
                for names, kind in kinds
                for name in names
                if type(event.get(name)) is kind and (kind is not int or 0 <= event[name] < _MOST)
            },
        )

    def fraction(self, part: str) -> float:
        """Return the fraction of the wall time that went into a part."""
        return self.parts.get(part, 0.0) / self.wall_s if self.wall_s > 0 else 0.0


def _seconds(table: object) -> dict[str, float]:
    """Return the times of a table by name."""
    items = table.items() if isinstance(table, dict) else ()
    return {str(name): number for name, value in items if (number := as_number(value)) >= 0}


def _time(value: object) -> float:
    number = as_number(value)
    return number if number > 0 else 0.0  # NaN is not greater


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST else 0
