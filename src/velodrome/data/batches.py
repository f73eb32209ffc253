"""What a batch is: a tensor, a tuple or a dict, possibly nested; how many samples it has; how it moves to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_tensor", "map_tensors", "move", "num_samples"]


def move(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on the device; everything else is left as it is."""
    # A copy from pinned memory runs beside the computation; from other memory non_blocking changes nothing. To the CPU it
    # would return before the numbers are there.
    is_copied_beside = device.type != "cpu"
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=is_copied_beside))


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return the batch with what the function makes of each tensor; the nesting and everything else are left as they are."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(item, function) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(item, function) for item in batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in batch.items()}
        return mapped if type(batch) is dict else _rebuild(batch, mapped)
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
