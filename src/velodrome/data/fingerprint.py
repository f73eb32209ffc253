"""A short text that tells data in memory from others of the same size."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from velodrome.data.columns import Columns

__all__ = ["fingerprint"]

_NUM_SAMPLES = 64


def fingerprint(columns: Columns) -> str:
    """Return a hash of shapes, dtypes and 64 samples from the first to the last: another file under the same name has another.

    A look at some samples and not at all: an ImageNet in memory takes a minute to hash. What changes a single sample in the middle is
    not seen.

    Cost: reads 64 samples; one wait where the data are on a device.
    """
    count = columns.num_samples
    places = torch.linspace(0, max(0, count - 1), min(count, _NUM_SAMPLES)).round().long()
    tensors = columns.select(places).tensors
    named: Mapping[str, Tensor]
    if isinstance(tensors, dict):
        named = tensors
    else:
        parts = tensors if isinstance(tensors, tuple) else (tensors,)
        named = {str(index): part for index, part in enumerate(parts)}
    digest = hashlib.sha256()
    for name, part in named.items():
        digest.update(f"{name} {count} {tuple(part.shape)} {part.dtype};".encode())
        host = part.detach().contiguous().cpu()  # SYNC: once a run, before it begins or at its first save
        if host.numel():
            digest.update(host.view(torch.uint8).numpy().tobytes())  # SYNC: on the CPU already
    return digest.hexdigest()[:16]
