"""The part that all schedules with a name of their own share: warm-up and length; and the constant one, which has nothing else.

`warmup` is in updates, a fraction of the run, or in words such as "5 epochs". `warmup_start` is the factor of the first
update; 1 / (warm-up + 1) unless given, so that no update is wasted on a learning rate of zero. `length` is the run's length by
hand. A warm-up of W updates is over at update index W, the first that has the full learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeGuard

from velodrome.errors import ArgumentError
from velodrome.step.schedules.curves import Curve, constant, rise
from velodrome.step.schedules.spans import RunLength, SpanLike, read_span

__all__ = ["Constant", "check_factor", "is_number"]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The full learning rate after the warm-up."""

    name: ClassVar[str] = "constant"
    follows_length: ClassVar[bool] = False

    warmup: SpanLike = 0
    warmup_start: float | None = None
    length: SpanLike | None = None

    def __post_init__(self) -> None:
        if self.warmup_start is not None:
            check_factor("warmup_start", self.warmup_start)
        if self.length is not None and read_span(self.length, "length", positive=True).unit == "fraction":
            raise ArgumentError(
                f'length={self.length!r} is a fraction. The length by hand is absolute: length="1000 steps", say.',
                argument="length",
            )
        for name, value in self._spans():
            read_span(value, name, positive=name != "warmup")

    @property
    def needs_length(self) -> bool:
        """Whether `curve` asks for something that a run need not know."""
        spans = [read_span(value, name) for name, value in self._spans()]
        asks_total = self.follows_length or any(span.unit == "fraction" for span in spans)
        if asks_total and self.length is None:
            return True
        if self.length is not None:
            spans.append(read_span(self.length, "length"))
        return any(span.unit == "epochs" for span in spans)

    def fit(self, run: RunLength) -> RunLength:
        """Return the run with the length that this schedule is to have.

        Raises:
            ArgumentError: the curve needs a length, and none is known.
        """
        if self.length is not None:
            return run.with_total(max(1, round(read_span(self.length, "length").updates(run))))
        if self.follows_length and run.total is None:
            raise ArgumentError(
                f'scheduler="{self.name}" follows the length of the run, which cannot be known: it has no budget in updates, '
                f"and its epochs no known number of updates. "
                f'Give steps= to the run, or the length by hand: length="1000 steps" among the scheduler\'s arguments.',
                argument="length",
            )
        return run

    def warmup_updates(self, run: RunLength) -> int:
        """Return the length of the warm-up in a fitted run.

        Raises:
            ArgumentError: it leaves nothing of a curve that follows the run's length.
        """
        updates = round(read_span(self.warmup, "warmup").updates(run))
        if self.follows_length and run.total is not None and updates >= run.total:
            raise ArgumentError(
                f"warmup={self.warmup!r} is {updates:,} updates of a run of {run.total:,}. It must leave some to the "
                f"{self.name} that follows: shorten it, or give a fraction such as warmup=0.1.",
                argument="warmup",
            )
        return updates

    def curve(self, run: RunLength, base_lr: float) -> Curve:
        """Return the factors of a parameter group with that initial learning rate, for a fitted run."""
        updates = self.warmup_updates(run)
        then = self._main(run, updates, base_lr)
        start = 1.0 / (updates + 1) if self.warmup_start is None else self.warmup_start
        return rise(then, over=updates, start=start) if updates else then

    def summary(self, run: RunLength) -> str:
        """Return name, length and warm-up in words, for a fitted run."""
        updates = self.warmup_updates(run)
        text = f"{self.name}{self._detail()}"
        if self.follows_length:
            text += f" over {(run.total or 0) - updates:,} updates"
        return f"{text} after {updates:,} of warm-up" if updates else text

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        return constant

    def _detail(self) -> str:
        return ""

    def _spans(self) -> list[tuple[str, SpanLike]]:
        return [("warmup", self.warmup)]


def check_factor(name: str, value: object) -> None:
    """Refuse what is no number in 0..1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ArgumentError(
            f"{name}={value!r} is no factor of the learning rate. It must be a number from 0 to 1.", argument=name
        )


def is_number(value: object) -> TypeGuard[float]:
    """Return whether it is an int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
