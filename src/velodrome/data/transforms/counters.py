"""Random numbers by counting: each is a hash of what it is for, so that none depends on what was drawn before.

A generator hands numbers out one after the other; a sample's numbers then depend on the samples before it. Here the seed and the epoch
make a key, the key and the sample's index make the sample's key, and that and a counter make each number: in any batch, in any order, on
any device, all samples of a batch at once. Integer arithmetic only, so that the numbers are the same bits everywhere.

Source: G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (the mixing function, variant 13 of
D. Stafford's); J. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011 (the idea).
"""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor

__all__ = ["key_of_epoch", "keys_of_samples", "normals", "uniforms"]

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # odd: counting by it visits every number of 64 bits
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_NORMALS_FROM = 1 << 32  # counters from here on are for normal numbers


def key_of_epoch(seed: int, epoch: int) -> int:
    """Return what the keys of an epoch's samples are made from: 64 bits, as a signed number."""
    digest = hashlib.sha256(f"batched transforms:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def keys_of_samples(key: int, indices: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return a key of each sample, int64, of the shape of the indices; different indices have different keys.

    Args:
        key: of the epoch.
        indices: of the samples, int64.
        positions: in the epoch, where a sampler may name a sample twice.
    """
    keys = _mix(indices * _GOLDEN + key)
    return keys if positions is None else _mix(positions * _GOLDEN + keys)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Return numbers in [0, 1), float32 of 24 random bits, shape (*keys.shape, count)."""
    bits = _mix(keys.unsqueeze(-1) + _counters(count, keys.device))
    return (bits.bitwise_right_shift_(40).bitwise_and_(0xFFFFFF)).to(torch.float32).mul_(2.0**-24)


def normals(keys: Tensor, count: int, *, first: int = 0) -> Tensor:
    """Return standard normal numbers, float32, shape (*keys.shape, count).

    Each is one of 65,536 equally likely quantiles, up to 4.2 in size, looked up rather than computed: logarithm and cosine would
    round differently at the end of a tensor, which is worked on without vector instructions, so that a sample would depend on its batch.

    Args:
        keys: of the samples.
        count: numbers a sample.
        first: counter of the first hash; each gives four numbers.
    """
    hashes = -(-count // 4)
    bits = _mix(keys.unsqueeze(-1) + _counters(hashes, keys.device, first=_NORMALS_FROM + first))
    index = bits.view(torch.int16)[..., :count].to(torch.int32).bitwise_and_(0xFFFF)
    return _quantiles(keys.device).index_select(0, index.flatten()).view(index.shape)


def _mix(bits: Tensor) -> Tensor:
    """Hash numbers of 64 bits, in place; overflow wraps round, and shifts are made as of unsigned numbers."""
    bits ^= (bits >> 30).bitwise_and_((1 << 34) - 1)
    bits *= _MIX_1
    bits ^= (bits >> 27).bitwise_and_((1 << 37) - 1)
    bits *= _MIX_2
    bits ^= (bits >> 31).bitwise_and_((1 << 33) - 1)
    return bits


def _counters(count: int, device: torch.device, *, first: int = 0) -> Tensor:
    return torch.arange(first + 1, first + count + 1, device=device).mul_(_GOLDEN)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Return the 65,536 quantiles of the normal distribution in the middle of equal parts, float32."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(middles).to(torch.float32).to(device)  # SYNC: once a device
