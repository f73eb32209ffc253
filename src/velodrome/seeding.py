"""One seed for everything random."""

from __future__ import annotations

import random

import numpy
import torch

from velodrome.errors import ArgumentError

__all__ = ["check_seed", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (of every device) with the same number.

    Args:
        seed: 0 .. 2**63 - 1; NumPy's old global generator takes the low 32 bits.
    Raises:
        ArgumentError: the seed is not a whole number in that range.
    """
    check_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_seed(seed: object) -> None:
    """Refuse what cannot be a seed.

    Raises:
        ArgumentError: not a whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed={seed!r} is not a seed. It must be a whole number from 0 to 2**63 - 1.", seed=seed)
