"""The bill: where the wall time of a run went, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from velodrome.errors import ArgumentError, nearest
from velodrome.report.bill_parts import PARTS

__all__ = ["NO_BILL", "Bill"]


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Where the time of a run went, or of an epoch; `parts` sum to `wall_s`.

    Everything outside of the batches of training is timed each time. The time of those batches is known as a whole, and divided as it
    was in some of them: all where a batch takes longer than 10 ms, at random one of up to 64 where they are shorter. In a loop of your
    own "forward" is all of your code between two batches that is not one of the trainer's methods.
    """

    wall_s: float
    """from the start of the run on, as far as this process has taken part in it; in the records up to where the bill is written there, before
    they are closed and curves are drawn"""
    parts: dict[str, float] = field(default_factory=dict)
    """seconds by part, in the order of `PARTS`"""
    callbacks: dict[str, float] = field(default_factory=dict)
    """seconds by the callback's class"""
    batches: int = 0
    """of training"""
    num_long: int = 0
    """batches of training that took far longer than usual from their data on, as far as the host's clock tells"""
    long_s: float = 0.0
    """what they took longer than usual, together; it is part of forward and its like"""
    dataset: str = ""
    """the class of the training data; empty where there were none"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what decides which advice there is to give: see `velodrome.data.origin` and `Run`; as it was when the bill was made"""

    def fraction(self, part: str) -> float:
        """Return the fraction of the wall time that went into a part.

        Raises:
            ArgumentError: no such part.
        """
        if part not in PARTS:
            raise ArgumentError(f"part={part!r} is no part of a bill. {nearest(str(part), PARTS)}")
        return self.parts.get(part, 0.0) / self.wall_s if self.wall_s > 0 else 0.0

    def line(self) -> str:
        """Say it in one line, the largest part first; parts below one percent together."""
        named = sorted(((self.fraction(part), PARTS[part]) for part in PARTS), reverse=True)
        large = [f"{name} {fraction:.0%}" for fraction, name in named if fraction >= 0.01]
        rest = sum(fraction for fraction, _ in named if fraction < 0.01)
        return f"Time {_seconds(self.wall_s)}: {', '.join(large)}" + (f", the rest {rest:.1%}" if rest >= 0.001 else "")

    def table(self) -> str:
        """Return a table: part, seconds, percent, and microseconds a batch for what happens in every batch."""
        rows = [f"{'part':<22}{'seconds':>10}{'%':>7}{'us a batch':>13}"]
        for part, name in PARTS.items():
            seconds = self.parts.get(part, 0.0)
            in_batches = part in ("data_wait", "transfer", "forward", "backward", "optimizer") and self.batches
            each = f"{seconds / self.batches * 1e6:>13,.1f}" if in_batches else ""
            rows.append(f"{name:<22}{seconds:>10.3f}{self.fraction(part) * 100:>7.1f}{each}")
        rows += [
            f"  {name:<20}{seconds:>10.3f}{seconds / max(self.wall_s, 1e-9) * 100:>7.1f}"
            for name, seconds in self.callbacks.items()
        ]
        rows.append(f"{'wall time':<22}{self.wall_s:>10.3f}{100 if self.wall_s else 0:>7.1f}")
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return {
            "wall_s": self.wall_s,
            "parts_s": dict(self.parts),
            "callbacks_s": dict(self.callbacks),
            "batches": self.batches,
            "long_batches": {"num": self.num_long, "seconds": self.long_s},
            "dataset": self.dataset,
            **self.facts,
        }


NO_BILL = Bill(wall_s=0.0)
"""of a trainer that has not run"""


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
