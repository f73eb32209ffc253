"""One process's part of the data, where several train together.

A loader's batch is the batch of all processes: each takes its contiguous slice, so that steps, schedule and gradients are those
of one process. What comes as ready batches of unknown nature is dealt out batch by batch.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch.utils.data.distributed import DistributedSampler

from velodrome.data.order import epoch_generator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

__all__ = ["EMPTY", "WHOLE", "Share", "describe_sharded", "draw_together", "is_sharded"]


class _Empty:
    """Stands where other processes have a batch and this one has not; see `EMPTY`."""

    def __repr__(self) -> str:
        return "EMPTY"


EMPTY = _Empty()
"""A batch of which this process's slice is empty: the process still takes part in the update that it belongs to."""


@dataclass(frozen=True)
class Share:
    """Which part of each batch belongs to this process.

    >>> [Share(rank, 3).of(8) for rank in range(3)]
    [(0, 3), (3, 6), (6, 8)]
    """

    rank: int = 0
    size: int = 1

    def of(self, num_samples: int) -> tuple[int, int]:
        """Return where this process's slice of so many samples begins and ends; the first ranks get one more."""
        each, extra = divmod(num_samples, self.size)
        start = self.rank * each + min(self.rank, extra)
        return start, start + each + (self.rank < extra)

    def of_batches(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's slices of batches of so many indices, one after the other, and the size of a slice.

        The last batch may be short; its slice then is, too.
        """
        whole = len(order) - len(order) % batch_size
        start, end = self.of(batch_size)
        slices = order[:whole].view(-1, batch_size)[:, start:end].reshape(-1)
        last = order[whole:]
        return torch.cat((slices, last[slice(*self.of(len(last)))])), end - start

    def deal(self, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Deal batches, with their numbers of samples, out in rounds of one to each process.

        Yields the samples of a round and this process's batch of it; `EMPTY` where the last round has none for it.
        """
        samples, place, own = 0, 0, EMPTY
        for size, batch in batches:
            samples += size
            if place == self.rank:
                own = batch
            place += 1
            if place == self.size:
                yield samples, own
                samples, place, own = 0, 0, EMPTY
        if place:
            yield samples, own


WHOLE = Share()
"""All of it: one process."""


def is_sharded(data: Any) -> bool:
    """Return whether data divide themselves among processes: by a `DistributedSampler`, or by their word, `is_sharded = True`."""
    return any(
        isinstance(part, DistributedSampler) or getattr(part, "is_sharded", False) is True for part in _parts(data)
    )


def describe_sharded(data: Any) -> str:
    """Say that data divide themselves, and how many samples a `DistributedSampler` repeats to make all shards equal."""
    for part in _parts(data):
        if isinstance(part, DistributedSampler):
            repeated = 0 if part.drop_last else part.total_size - len(part.dataset)  # type: ignore[arg-type]
            note = (
                f", which gives {repeated} sample{'s' * (repeated != 1)} twice (leave it out for exact metrics)"
                if repeated
                else ""
            )
            return f"divided by its DistributedSampler{note}"
    return "which each process reads as its own part"


def draw_together(items: Iterable[Any], *, seed: int, epoch: int) -> Iterator[Any]:
    """Yield the items, drawn in every process from one random stream: samplers and generators then agree on their order.

    The stream is that of Python, NumPy and torch (on the CPU); what this process draws otherwise is not touched.
    Cost: about 60 microseconds an item.
    """
    states = _seeded(seed, epoch)
    states, iterator = _within(states, lambda: iter(items))
    while True:
        states, item = _within(states, lambda: next(iterator, EMPTY))
        if item is EMPTY:
            return
        yield item


def _within(states: Any, function: Any) -> tuple[Any, Any]:
    """Call a function with generators in these states; return the states afterwards and its result."""
    with _put_back():
        _set_states(states)
        result = function()
        return _states(), result


def _seeded(seed: int, epoch: int) -> Any:
    number = epoch_generator(seed, epoch, "dealt").initial_seed()
    with _put_back():
        random.seed(number)
        numpy.random.seed(number % 2**32)
        torch.set_rng_state(torch.Generator().manual_seed(number).get_state())
        return _states()


@contextmanager
def _put_back() -> Iterator[None]:
    before = _states()
    try:
        yield
    finally:
        _set_states(before)


def _states() -> Any:
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state()


def _set_states(states: Any) -> None:
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _parts(data: Any) -> list[Any]:
    """Return the data and what they are made of: dataset, sampler, batch sampler and its sampler."""
    named = [data, *(getattr(data, name, None) for name in ("dataset", "sampler", "batch_sampler"))]
    return [part for part in [*named, getattr(named[-1], "sampler", None)] if part is not None]
