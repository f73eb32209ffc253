"""The order of samples: a pure function of (seed, epoch)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["epoch_generator", "epoch_order"]


def epoch_order(num_samples: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Return the sample indices of one epoch, int64, shape (num_samples,), on the CPU.

    Nothing else goes in: not the worker count, not what was drawn before, not where a run was interrupted.
    """
    if not shuffle:
        return torch.arange(num_samples, device="cpu")
    return torch.randperm(num_samples, generator=epoch_generator(seed, epoch, "order"), device="cpu")


def epoch_generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a fresh CPU generator for one purpose in one epoch.

    The seed is hashed: sums such as `seed + epoch` make run 0's epoch 1 equal run 1's epoch 0.
    """
    digest = hashlib.sha256(f"{purpose}:{seed}:{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
