"""What a batch is: a tensor, a tuple or a dict, possibly nested; how many samples it has; how it moves to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_tensor", "move", "num_samples"]


def move(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on the device; everything else is left as it is."""
    if isinstance(batch, Tensor):
        # A copy from pinned memory runs beside the computation; from other memory non_blocking changes nothing.
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(item, device) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(item, device) for item in batch)
    if isinstance(batch, Mapping):
        moved = {key: move(value, device) for key, value in batch.items()}
        return moved if type(batch) is dict else _rebuild(batch, moved)
    return batch


def first_tensor(batch: Any) -> Tensor | None:
    """Return the first tensor that has a batch dimension, or None."""
    if isinstance(batch, Tensor):
        return batch if batch.ndim else None
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return None
    for item in batch:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def num_samples(batch: Any) -> int:
    """Return the length of the first dimension of the first tensor; 1 when there is none."""
    tensor = batch[0] if type(batch) in (tuple, list) and batch else batch
    if not isinstance(tensor, Tensor) or not tensor.ndim:
        tensor = first_tensor(batch)
    return 1 if tensor is None else tensor.shape[0]


def _rebuild(batch: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """Return a mapping of the batch's own type (a transformers BatchEncoding, say) where it can be made from a dict."""
    try:
        return type(batch)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
