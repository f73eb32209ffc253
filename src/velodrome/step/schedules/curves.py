"""Learning rate over updates as pure functions: the index of an update -> a factor of the initial learning rate.

Every factor lies in [0, 1], and holds its last value past the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SHAPES", "Curve", "Shape", "constant", "fall", "fall_by_steps", "fall_exponentially", "power_shape", "rise"]

Curve = Callable[[int], float]
Shape = Callable[[float], float]
"""From 1 at 0 to 0 at 1."""


def _linear(t: float) -> float:
    return 1.0 - t


def _cosine(t: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * t))


def _sqrt(t: float) -> float:
    return 1.0 - math.sqrt(t)


SHAPES: dict[str, Shape] = {"linear": _linear, "cosine": _cosine, "sqrt": _sqrt}


def power_shape(power: float) -> Shape:
    """Return the shape (1 - t) ** power."""
    return lambda t: (1.0 - t) ** power


def constant(_: int) -> float:
    """Return 1."""
    return 1.0


def fall(shape: Shape, *, begin: float, end: float, floor: float) -> Curve:
    """Return the curve that is 1 up to `begin` and falls by `shape` to `floor` at `end`."""

    def factor(update_index: int) -> float:
        if update_index >= end:
            return floor
        if update_index <= begin:
            return 1.0
        return floor + (1.0 - floor) * shape((update_index - begin) / (end - begin))

    return factor


def fall_exponentially(gamma: float, *, begin: float, per: float) -> Curve:
    """Return the curve that is multiplied by `gamma` over every `per` updates, smoothly, from `begin` on."""
    return lambda update_index: gamma ** (max(update_index - begin, 0.0) / per)


def fall_by_steps(gamma: float, drops: Callable[[int], int]) -> Curve:
    """Return the curve that is `gamma` to the power of the drops so far."""
    return lambda update_index: gamma ** drops(update_index)


def rise(then: Curve, *, over: float, start: float, shape: Shape = _linear) -> Curve:
    """Return a warm-up from `start` at update 0 to 1 at update `over`, and the curve `then` from there on."""

    def factor(update_index: int) -> float:
        if update_index < over:
            return 1.0 - (1.0 - start) * shape(update_index / over)
        return then(update_index)

    return factor
