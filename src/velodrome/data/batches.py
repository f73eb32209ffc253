"""What a batch is: a tensor, a tuple or a dict, possibly nested; how many samples it has; how it moves to a device.

Tensors may also be packed sequences, or lie in an object that moves itself by a `.to(device)` of its own, a batch of graphs say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, ValuesView
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["map_tensors", "move", "moves_itself", "named_tensors", "num_samples", "tensors_from_arrays"]


def move(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on the device; an object with a `.to` is asked to move itself, everything else stays."""
    # A copy from pinned memory runs beside the computation; from other memory non_blocking changes nothing. To the CPU it
    # would return before the numbers are there.
    is_copied_beside = device.type != "cpu"
    return map_tensors(
        batch,
        lambda tensor: tensor.to(device, non_blocking=is_copied_beside),
        lambda other: other.to(device) if moves_itself(other) else other,
    )


def map_tensors(
    batch: Any, function: Callable[[Tensor], Any], of_other: Callable[[Any], Any] = lambda other: other
) -> Any:
    """Return the batch with what the function makes of each tensor; the nesting is left as it is.

    Args:
        batch: tensors, tuples, lists and mappings of them, however nested.
        function: of every tensor.
        of_other: of everything else.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, PackedSequence):
        return _map_pack(batch, function)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(item, function, of_other) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(item, function, of_other) for item in batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function, of_other) for key, value in batch.items()}
        return mapped if type(batch) is dict else _rebuild(batch, mapped)
    return of_other(batch)


def named_tensors(batch: Any, place: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a batch with its place in it: "batch/0", "batch/input_ids"."""
    if isinstance(batch, Tensor):
        yield place, batch
    elif isinstance(batch, PackedSequence):
        yield place, batch.data
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_tensors(value, f"{place}/{key}")
    elif isinstance(batch, (tuple, list)):
        for index, value in enumerate(batch):
            yield from named_tensors(value, f"{place}/{index}")


def tensors_from_arrays(batch: Any) -> Any:
    """Return the batch with a tensor over the memory of each NumPy array of numbers; the batch itself where it has none."""
    has_arrays = False

    def convert(part: Any) -> Any:
        nonlocal has_arrays
        if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
            has_arrays = True
            return torch.from_numpy(part if part.flags.writeable else part.copy())
        return part

    converted = map_tensors(batch, lambda tensor: tensor, convert)
    return converted if has_arrays else batch


def num_samples(batch: Any) -> int:
    """Return how many samples a batch has: the first dimension of its tensors, or the sequences of a pack; 1 when there is neither.

    Where they differ, a mask of (length, length) before the inputs say, it is what most parts have; of two the first.
    """
    if type(batch) in (tuple, list) and len(batch) == 2:  # nearly always
        first, second = batch
        if isinstance(first, Tensor) and isinstance(second, Tensor) and first.ndim:
            return first.shape[0]
    lengths = list(_all_lengths(batch))
    counts = Counter(lengths)
    return max(lengths, key=lambda length: counts[length], default=1)


def _all_lengths(batch: Any) -> Iterator[int]:
    """Yield what each part of the batch says about its samples."""
    if isinstance(batch, Mapping):
        batch = batch.values()
    if isinstance(batch, (tuple, list, ValuesView)) and not isinstance(batch, PackedSequence):
        for part in batch:
            yield from _all_lengths(part)
    else:
        length = _length(batch)
        if length is not None:
            yield length


def _length(batch: Any) -> int | None:
    """Return what a part of a batch says about the samples."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])  # SYNC: none, torch keeps the lengths on the CPU
    return None


def _map_pack(pack: PackedSequence, function: Callable[[Tensor], Tensor]) -> PackedSequence:
    """Return the packed sequence with other values; its order goes with them, its lengths stay on the CPU as torch wants it."""
    data = function(pack.data)
    order = (None if index is None else index.to(data.device) for index in (pack.sorted_indices, pack.unsorted_indices))
    return PackedSequence(data, pack.batch_sizes, *order)


def moves_itself(batch: Any) -> bool:
    """Return whether an object of a batch has a `.to(device)` of its own."""
    # Not a class, whose `to` is no method yet, and not a model, which would be moved in place.
    return callable(getattr(batch, "to", None)) and not isinstance(batch, (type, nn.Module))


def _rebuild(batch: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """Return a mapping of the batch's own type (a transformers BatchEncoding, say) where it can be made from a dict."""
    try:
        return type(batch)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
