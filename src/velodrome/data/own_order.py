"""Whether batches come in the order of the data: what predict must know, which gives one output a sample in that order."""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler
from torch.utils.data import DataLoader as TorchDataLoader

from velodrome.errors import ArgumentError

__all__ = ["check_own_order"]


def check_own_order(data: Any) -> None:
    """Refuse a loader, ours or PyTorch's, that leaves samples out or whose sampler may give another order each time.

    Samplers that name their samples, such as a list of indices, are taken at their word; anything else that is iterated over
    has the order that it has.

    Raises:
        ArgumentError: with what to give instead.
    """
    is_iterable = isinstance(data.dataset, IterableDataset)
    # Over a map-style dataset our own loader can do without drop_last.
    is_short = data.drop_last and (is_iterable or isinstance(data, TorchDataLoader))
    if is_short or getattr(data.batch_sampler, "drop_last", False):
        raise ArgumentError(
            f"The {type(data).__name__} has drop_last=True, which leaves samples out. A prediction needs every sample: "
            f"give a loader with drop_last=False."
        )
    sampler = data.batch_sampler if data.batch_sampler is not None else data.sampler
    if not is_iterable and sampler is not None and not _is_fixed(sampler):
        inner = sampler.sampler if type(sampler) is BatchSampler else sampler
        raise ArgumentError(
            f"The {type(data).__name__} takes its samples from a {type(inner).__name__}, whose order may differ each time. "
            f"A prediction gives its outputs in the order of the data: give the dataset with batch_size=, or a loader "
            f"without a sampler and without shuffle."
        )


def _is_fixed(sampler: Any) -> bool:
    """Return whether the sampler says which samples come, in an order that anyone can read off."""
    if type(sampler) is BatchSampler:
        return _is_fixed(sampler.sampler)
    return type(sampler) is SequentialSampler or isinstance(sampler, (list, tuple, range))
