"""Named schedules that do not ask how long the run is: exponential, and drops by steps."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from velodrome.errors import ArgumentError
from velodrome.step.schedules.curves import Curve, fall_by_steps, fall_exponentially
from velodrome.step.schedules.spans import RunLength, SpanLike, read_span
from velodrome.step.schedules.spec import Constant, is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Exponential", "Step"]


@dataclass(frozen=True, kw_only=True)
class Exponential(Constant):
    """Times `gamma` over every `every`, smoothly, from the warm-up's end on."""

    name: ClassVar[str] = "exponential"

    gamma: float
    every: SpanLike = "1 epoch"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_gamma(self.gamma)

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        return fall_exponentially(self.gamma, begin=begin, per=read_span(self.every, "every").updates(run))

    def _detail(self) -> str:
        return f" by {self.gamma:g} over every {_words(self.every)}"

    def _spans(self) -> list[tuple[str, SpanLike]]:
        return [*super()._spans(), ("every", self.every)]


@dataclass(frozen=True, kw_only=True)
class Step(Constant):
    """Times `gamma` at once after every `every`, or at each of the `milestones`; both counted from the run's start."""

    name: ClassVar[str] = "step"

    gamma: float = 0.1
    every: SpanLike | None = None
    milestones: Sequence[SpanLike] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.milestones, (list, tuple)):
            raise ArgumentError(
                f"milestones={self.milestones!r} is not a list. Give the updates or times of the drops, such as "
                f'["30 epochs", "60 epochs"].',
                argument="milestones",
            )
        super().__post_init__()
        _check_gamma(self.gamma)
        if (self.every is None) == (not self.milestones):
            raise ArgumentError(
                f"every={self.every!r} and milestones={self.milestones!r}: the drops are not defined. "
                f'Give exactly one, such as every="30 epochs" or milestones=["30 epochs", "60 epochs"].',
                argument="every",
            )

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        if self.every is not None:
            per = max(1, round(read_span(self.every, "every").updates(run)))
            first, curve = per, fall_by_steps(self.gamma, lambda update_index: update_index // per)
        else:
            points = sorted(round(read_span(value, "milestones").updates(run)) for value in self.milestones)
            first, curve = points[0], fall_by_steps(self.gamma, lambda update_index: bisect_right(points, update_index))
        if begin and first <= begin:
            raise ArgumentError(
                f"The first drop, at update {first:,}, does not come after the warm-up of {begin:,} updates. It must, or the full learning rate is never used: "
                f"shorten warmup, or drop later.",
                argument="warmup",
            )
        return curve

    def _detail(self) -> str:
        if self.every is not None:
            return f" by {self.gamma:g} every {_words(self.every)}"
        return f" by {self.gamma:g} at {', '.join(_words(value) for value in self.milestones)}"

    def _spans(self) -> list[tuple[str, SpanLike]]:
        own = [("milestones", value) for value in self.milestones]
        return [*super()._spans(), *own, *([] if self.every is None else [("every", self.every)])]


def _check_gamma(gamma: object) -> None:
    if not is_number(gamma) or not 0 < gamma <= 1:
        raise ArgumentError(
            f"gamma={gamma!r} is no factor to fall by. It must be above 0 and at most 1.", argument="gamma"
        )


def _words(value: SpanLike) -> str:
    return str(read_span(value, "every")).strip('"')
