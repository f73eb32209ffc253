"""Named schedules that fall until the run's end: linear, cosine, polynomial, warm-up-stable-decay, one cycle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from velodrome.errors import ArgumentError, nearest
from velodrome.step.schedules.curves import SHAPES, Curve, Shape, fall, power_shape, rise
from velodrome.step.schedules.spans import RunLength, SpanLike, read_span
from velodrome.step.schedules.spec import Constant, check_factor, is_number

__all__ = ["Cosine", "Linear", "OneCycle", "Polynomial", "WarmupStableDecay"]


@dataclass(frozen=True, kw_only=True)
class Linear(Constant):
    """A straight line to `end_factor` at the run's end."""

    name: ClassVar[str] = "linear"
    follows_length: ClassVar[bool] = True

    end_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factor("end_factor", self.end_factor)

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        return fall(SHAPES["linear"], begin=begin, end=run.total or 0, floor=self.end_factor)


@dataclass(frozen=True, kw_only=True)
class Cosine(Constant):
    """Half a cosine down to `min_factor`, or to the absolute `min_lr`, at the run's end.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, eq. 5, without restarts.
    """

    name: ClassVar[str] = "cosine"
    follows_length: ClassVar[bool] = True

    min_factor: float | None = None
    min_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_factor is not None and self.min_lr is not None:
            raise ArgumentError(
                f"min_factor={self.min_factor!r} and min_lr={self.min_lr!r} say the same thing twice. Give one of them.",
                argument="min_lr",
            )
        if self.min_factor is not None:
            check_factor("min_factor", self.min_factor)
        if self.min_lr is not None and not (is_number(self.min_lr) and 0 <= self.min_lr < math.inf):
            raise ArgumentError(
                f"min_lr={self.min_lr!r} is not a learning rate. It must be a number of at least 0.", argument="min_lr"
            )

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        return fall(self._shape(), begin=begin, end=run.total or 0, floor=self._floor(base_lr))

    def _shape(self) -> Shape:
        return SHAPES["cosine"]

    def _floor(self, base_lr: float) -> float:
        if self.min_lr is None:
            return self.min_factor or 0.0
        if self.min_lr > base_lr:
            raise ArgumentError(
                f"min_lr={self.min_lr:g} is above the learning rate of a parameter group, {base_lr:g}. "
                f"It must not be: lower it, or give min_factor, which is relative to each group.",
                argument="min_lr",
            )
        return self.min_lr / base_lr if base_lr else 0.0


@dataclass(frozen=True, kw_only=True)
class Polynomial(Cosine):
    """(1 - t) ** power from the warm-up's end, t = 0, to the run's, t = 1."""

    name: ClassVar[str] = "polynomial"

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.power) or not 0 < self.power < math.inf:
            raise ArgumentError(f"power={self.power!r} is no power to fall by. It must be positive.", argument="power")

    def _shape(self) -> Shape:
        return power_shape(self.power)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Cosine):
    """Warm-up, then the full learning rate, then a fall over the last `decay` of the run.

    Source: Hu et al., "MiniCPM", 2024, section 4.1; the shape "sqrt", 1 - sqrt(t), and the fifth of the run for the fall:
    Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024, section 4.
    """

    name: ClassVar[str] = "wsd"

    decay: SpanLike = 0.2
    shape: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shape(self.shape)

    def _main(self, run: RunLength, begin: int, base_lr: float) -> Curve:
        total, updates = run.total or 0, round(read_span(self.decay, "decay").updates(run))
        if begin + updates > total:
            raise ArgumentError(
                f"warmup={self.warmup!r} and decay={self.decay!r} are {begin:,} and {updates:,} updates of a run of {total:,}. "
                f"Together they must fit into it: shorten one, or give fractions.",
                argument="decay",
            )
        return fall(SHAPES[self.shape], begin=total - updates, end=total, floor=self._floor(base_lr))

    def _spans(self) -> list[tuple[str, SpanLike]]:
        return [*super()._spans(), ("decay", self.decay)]


@dataclass(frozen=True, kw_only=True)
class OneCycle(Cosine):
    """Up from `warmup_start` over the warm-up and down to `min_factor` at the last update: `torch`'s OneCycleLR in two phases.

    The optimizer's learning rate is the peak, OneCycleLR's `max_lr`; the defaults are its `pct_start`, `div_factor` and
    `final_div_factor`. As there the peak is the last update of the warm-up, index W - 1, and W is not rounded. Momentum is left
    alone: `"onecyclelr"` cycles it.

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018.
    """

    name: ClassVar[str] = "one_cycle"

    warmup: SpanLike = 0.3
    warmup_start: float | None = 1 / 25
    min_factor: float | None = None
    shape: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shape(self.shape)

    def curve(self, run: RunLength, base_lr: float) -> Curve:
        """Return the factors of a parameter group with that initial learning rate, for a fitted run."""
        self.warmup_updates(run)
        peak = max(read_span(self.warmup, "warmup").updates(run) - 1, 0.0)
        start = 1 / 25 if self.warmup_start is None else self.warmup_start
        floor = 1 / 25e4 if self.min_factor is None and self.min_lr is None else self._floor(base_lr)
        shape = SHAPES[self.shape]
        then = fall(shape, begin=peak, end=max((run.total or 0) - 1, 1), floor=floor)
        return rise(then, over=peak, start=start, shape=shape)


def _check_shape(shape: object) -> None:
    if shape not in SHAPES:
        raise ArgumentError(f"shape={shape!r} is unknown. {nearest(str(shape), SHAPES)}", argument="shape")
