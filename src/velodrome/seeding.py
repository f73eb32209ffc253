"""One seed for everything random."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy
import torch

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_seed", "random_state_kept", "seed_everything", "seed_of_rank"]


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


def seed_of_rank(seed: int, rank: int) -> int:
    """Return the seed of one of several processes that train together: rank 0 has the run's own, the others streams apart.

    Hashed: `seed + rank` would make rank 1 of run 0 equal rank 0 of run 1.
    """
    if not rank:
        return seed
    digest = hashlib.sha256(f"rank:{seed}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the generators of Python, NumPy, PyTorch and a CUDA device back as they were: what is drawn inside was never drawn."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def check_seed(seed: object) -> None:
    """Refuse what cannot be a seed.

    Raises:
        ArgumentError: not a whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed={seed!r} is not a seed. It must be a whole number from 0 to 2**63 - 1.", seed=seed)
