"""Fetching the samples of a map-style dataset, in the training process or in a worker: seeded one by one, errors named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Subset, default_collate, default_convert, get_worker_info

from velodrome.data.failures import Failure, list_of
from velodrome.data.randomness import GeneratorsKept, name_of, seed_generators

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fetching", "Request", "hand_over"]


class Request(NamedTuple):
    """What is asked of a dataset: a batch, or one item where the items are not batched.

    Fields:
        indices: of the samples; one index where the items are not batched.
        key: of the epoch, see `epoch_key`.
        position: of the first sample in the epoch, counted over all processes.
        by_position: a sampler may name a sample twice in an epoch; its position tells the two apart.
    """

    indices: Any
    key: bytes
    position: int
    by_position: bool


class Fetching:
    """Stands in the dataset's place in PyTorch's loader, and answers requests with finished batches.

    Random numbers of a sample are f(seed, epoch, index). A dataset with `__getitems__` is seeded once a batch, as is what collates.

    Args:
        dataset: map-style.
        collate: makes a batch of samples; None is PyTorch's own.
        is_batched: whether a request is for a batch.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any] | None, *, is_batched: bool) -> None:
        self.dataset = dataset
        self._is_batched = is_batched
        self._reads_batches = is_batched and _reads_batches(dataset)
        self._collate = collate or (default_collate if is_batched else default_convert)
        # Collating tensors draws nothing.
        self._seeds_collate = collate is not None

    def __getitem__(self, request: Request) -> Any:
        """Return a batch or an item; a `Failure` where that raised."""
        if get_worker_info() is not None:
            return self._fetch(request)
        with GeneratorsKept():
            return self._fetch(request)

    # PyTorch's loader asks for batches by this name, where it is there.
    __getitems__ = __getitem__

    def _fetch(self, request: Request) -> Any:
        indices = request.indices if self._is_batched else [request.indices]
        samples = self._read(request, indices)
        if isinstance(samples, Failure):
            return samples
        try:
            if self._seeds_collate:
                seed_generators(request.key, b"batch:%d" % request.position)
            return self._collate(samples if self._is_batched else samples[0])
        except Exception as error:
            return Failure.of(
                error, f"Making a batch of {list_of(indices)}", indices,
                remedy="All samples of a batch must have the same shapes and types, or collate_fn must say how they are put together.",
            )  # fmt: skip

    def _read(self, request: Request, indices: Any) -> Any:
        """Return the samples, or the failure."""
        dataset, key, position = self.dataset, request.key, request.position
        name = type(dataset).__name__
        if self._reads_batches:
            try:
                seed_generators(key, name_of(indices[0]) + (b":%d" % position if request.by_position else b""))
                return dataset.__getitems__(indices)
            except Exception as error:
                return Failure.of(
                    error, f"{name}.__getitems__ of {list_of(indices)}", indices,
                    remedy="Check these samples, or leave them out of the dataset.",
                )  # fmt: skip
        samples, index = [], None
        try:
            for index in indices:
                seed_generators(key, name_of(index) + (b":%d" % position if request.by_position else b""))
                samples.append(dataset[index])
                position += 1
        except Exception as error:
            return Failure.of(
                error, f"Reading sample {index} of {name}{_inside(dataset, index)}", [index],
                remedy="Check that sample, or leave it out of the dataset.",
            )  # fmt: skip
        return samples


def _reads_batches(dataset: Any) -> bool:
    """Return whether a dataset reads the samples of a batch at once.

    A `Subset` says so of itself, and asks for them one by one where what it is a part of does not: then so do we, with a seed each.
    """
    while _is_plain_subset(dataset):
        dataset = dataset.dataset
    return bool(getattr(dataset, "__getitems__", None))


def _inside(dataset: Any, index: Any) -> str:
    """Return which sample of the whole dataset a sample of a subset is, for messages."""
    if not _is_plain_subset(dataset):
        return ""
    try:
        while _is_plain_subset(dataset):
            dataset, index = dataset.dataset, dataset.indices[index]
    except IndexError:  # it is what the subset itself does not have
        return ""
    return f" (sample {index} of {type(dataset).__name__})"


def _is_plain_subset(dataset: Any) -> bool:
    kind = type(dataset)
    return isinstance(dataset, Subset) and (kind.__getitem__, kind.__getitems__) == (
        Subset.__getitem__,
        Subset.__getitems__,
    )


def hand_over(batch: Any) -> Any:
    """Return the batch as it is: it was collated where it was fetched."""
    return batch
