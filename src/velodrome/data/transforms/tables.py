"""Functions of a drawn number that are looked up rather than computed: one entry for each of 65,536 equal parts of [0, 1).

Logarithm, sine and the like round differently at the end of a tensor, which is worked on without vector instructions, so that a sample
would depend on its batch. A table is computed once, in float64 on the CPU, and gives every sample the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Table", "cos_sin_tan_of_degrees", "quantiles_of_beta", "roots_of_aspects"]

_SIZE = 1 << 16


class Table:
    """A function at the middles of 65,536 equal parts of [0, 1), computed when it is first asked for, on each device once.

    Args:
        function: of the middles, float64, shape (65536,), and of the arguments; returns shape (65536, ...).
        arguments: of the function.
    """

    def __init__(self, function: Callable[..., Tensor], *arguments: float) -> None:
        self._function = function
        self._arguments = arguments
        self._on: dict[torch.device, Tensor] = {}

    def at(self, numbers: Tensor) -> Tensor:
        """Return the function of numbers in [0, 1), float64, shape (*numbers.shape, ...)."""
        device = numbers.device
        if device not in self._on:
            middles = (torch.arange(_SIZE, dtype=torch.float64) + 0.5) / _SIZE
            self._on[device] = self._function(middles, *self._arguments).to(device)  # SYNC: once a device
        return self._on[device][(numbers * _SIZE).to(torch.int64)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_on": {}}


def roots_of_aspects(middles: Tensor, low: float, high: float) -> Tensor:
    """Return the square roots of aspects whose logarithm is spread evenly from log(low) to log(high)."""
    return (middles * (math.log(high) - math.log(low)) + math.log(low)).div_(2).exp_()


def cos_sin_tan_of_degrees(middles: Tensor, low: float, high: float) -> Tensor:
    """Return cosine, sine and tangent of angles that are spread evenly from low to high degrees, shape (65536, 3)."""
    angles = torch.deg2rad(middles * (high - low) + low)
    return torch.stack((angles.cos(), angles.sin(), angles.tan()), 1)


def quantiles_of_beta(middles: Tensor, alpha: float) -> Tensor:
    """Return the quantiles of the Beta(alpha, alpha) distribution.

    Its density is summed up over a fine grid and read backwards. Below alpha = 1 it has a pole at 0, which goes when x is written as
    t ** (1 / alpha); the other half is the mirror image.
    """
    steps = torch.linspace(0, 1, 16 * _SIZE + 1, dtype=torch.float64)
    if alpha < 1:
        x = 0.5 * steps.pow(1 / alpha)
        density = (1 - x).pow(alpha - 1)
    else:
        x = 0.5 * steps
        density = (4 * x * (1 - x)).pow(alpha - 1)  # of 1 at most, whatever alpha is
    share = torch.cat((torch.zeros(1, dtype=torch.float64), ((density[1:] + density[:-1]) / 2).cumsum(0)))
    share = share / share[-1] / 2
    wanted = torch.minimum(middles, 1 - middles)
    after = torch.searchsorted(share, wanted).clamp_(1, len(share) - 1)
    low, high = share[after - 1], share[after]
    part = (wanted - low) / (high - low)
    found = torch.lerp(x[after - 1], x[after], part)
    return torch.where(middles < 0.5, found, 1 - found)
