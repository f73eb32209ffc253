"""How many samples data have, and a part of them: of tensors and datasets, which can be read again and again."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset, Subset

__all__ = ["first_samples", "num_samples"]


def num_samples(data: Any) -> int | None:
    """Return how many samples tensors or a dataset hold; None for a loader or another iterable."""
    if not isinstance(data, (tuple, dict, Dataset)) or isinstance(data, IterableDataset) or not data:
        return None
    first: Any = data[0] if isinstance(data, tuple) else next(iter(data.values())) if isinstance(data, dict) else data
    try:
        return len(first)
    except (TypeError, NotImplementedError):
        return None


def first_samples(data: Any, count: int) -> Any:
    """Return the first samples of tensors or a dataset, as the same kind of thing."""
    if isinstance(data, tuple):
        return tuple(each[:count] for each in data)
    if isinstance(data, dict):
        return {key: each[:count] for key, each in data.items()}
    return Subset(data, range(count))
