"""A dataset that is read sample by sample, read once and kept as whole tensors: gathered by batch from then on.

Only where nothing about a sample is random: what is kept would be the same in every epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from velodrome.data.randomness import GeneratorsKept
from velodrome.data.recognise import recognise
from velodrome.errors import DataError
from velodrome.free_memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["read_into_memory"]

_SHARE_OF_MEMORY = 0.5
_NUM_READ_TWICE = 64


def read_into_memory(dataset: Any, *, role: str = "training") -> Any:
    """Return a dataset's samples as tensors that a loader gathers by batch; what is in memory already comes back as it is.

    A sample is refused as random where reading the dataset moves Python's, NumPy's or torch's generator, and where one of 64 samples,
    the first and the last among them, is another one when it is read again.

    Args:
        dataset: tensors, or a map-style dataset of tuples or dicts of tensors, arrays and numbers.
        role: what to call the data in messages.
    Returns:
        A `TensorDataset`, whose batches are those of the dataset to the bit, or a dict of tensors.
    Raises:
        DataError: samples are random, differ in shape, hold something that is no number, or do not fit into half of the free memory.
    Cost: each sample is read once, 64 of them twice; the tensors stay.
    """
    if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset) or recognise(dataset)[0] is not None:
        return dataset
    name = f"The {role} dataset ({type(dataset).__name__})"
    parts: Any = dataset
    count = len(parts)
    if not count:
        return dataset  # a loader says so
    with GeneratorsKept():
        first = _collated(parts[0], name)
        keys = list(first) if isinstance(first, dict) else list(range(len(first)))
        needed = sum(first[key].nbytes for key in keys) * count
        free = available_bytes(torch.device("cpu"))
        if needed > _SHARE_OF_MEMORY * free:
            raise DataError(
                f"{name} would take {needed / 1e9:.1f} GB in memory, and half of the {free / 1e9:.1f} GB that are free are given to data. "
                f"Leave in_memory out, and let workers read it (num_workers)."
            )
        kept = [torch.empty((count, *first[key].shape[1:]), dtype=first[key].dtype) for key in keys]
        with GeneratorsKept() as generators:
            for index in range(count):
                for tensor, part in zip(kept, _parts(parts[index], keys, kept, index, name), strict=True):
                    tensor[index] = part
            if generators.has_moved:
                raise _random(name, "draws random numbers")
        for index in sorted({round(each * (count - 1) / (_NUM_READ_TWICE - 1)) for each in range(_NUM_READ_TWICE)}):
            again = _parts(parts[index], keys, kept, index, name)
            if not all(_same(tensor[index], part) for tensor, part in zip(kept, again, strict=True)):
                raise _random(name, f"gives another sample {index} when it is read again")
    return dict(zip(keys, kept, strict=True)) if isinstance(first, dict) else TensorDataset(*kept)


def _collated(sample: Any, name: str) -> Any:
    """Return a batch of one sample, as PyTorch's loader makes it: a list or a dict of tensors."""
    try:
        batch: Any = default_collate([sample]) if isinstance(sample, (tuple, list, dict)) else None
    except (TypeError, RuntimeError):
        batch = None
    parts: Any = batch.values() if isinstance(batch, dict) else batch
    if batch is None or not all(isinstance(part, Tensor) for part in parts):
        raise DataError(
            f"{name} gives samples of type {type(sample).__name__} that are not all numbers. To be kept in memory they must be tuples or dicts of "
            f"tensors, arrays and numbers: leave in_memory out."
        )
    return batch


def _parts(sample: Any, keys: list[Any], kept: Sequence[Tensor], index: int, name: str) -> list[Tensor]:
    batch = _collated(sample, name)
    try:
        found = [batch[key][0] for key in keys]
    except (KeyError, IndexError):
        found = []
    if len(found) != len(batch) or any(
        part.shape != tensor.shape[1:] or part.dtype != tensor.dtype for part, tensor in zip(found, kept, strict=True)
    ):
        raise DataError(
            f"{name} gives sample {index} in another shape or type than sample 0. To be kept in memory all must be alike: leave in_memory out."
        )
    return found


def _random(name: str, why: str) -> DataError:
    return DataError(
        f"{name} {why}: kept in memory, its samples would be the same in every epoch. Leave in_memory out, or move what is random to batched "
        f"transforms (data.transforms)."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN for NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())  # SYNC: on the CPU
