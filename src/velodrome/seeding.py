"""One seed for everything random."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import torch

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "check_seed",
    "get_random_state",
    "random_state_kept",
    "seed_everything",
    "seed_of_rank",
    "set_random_state",
]


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


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's generators and of the trainer's accelerator, as tensors and numbers.

    With CUDA the generators of all its devices that this process sees; none where CUDA is not in use.
    """
    version, python_words, gauss = random.getstate()
    kind, words, position, has_gauss, cached = numpy.random.get_state()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(python_words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "words": torch.from_numpy(numpy.asarray(words).astype(numpy.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators into the states that `get_random_state` returned; those of devices that are not here are left out."""
    python, old = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))  # SYNC: on the CPU
    words = old["words"].numpy().astype(numpy.uint32)
    numpy.random.set_state((old["kind"], words, old["position"], old["has_gauss"], old["cached"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        for index, each in enumerate(state.get("cuda", ())):
            if index < torch.cuda.device_count():
                torch.cuda.set_rng_state(each, index)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def check_seed(seed: object) -> None:
    """Refuse what cannot be a seed.

    Raises:
        ArgumentError: not a whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed={seed!r} is not a seed. It must be a whole number from 0 to 2**63 - 1.", seed=seed)
