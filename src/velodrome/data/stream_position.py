"""Where an iterable dataset is being read: how many items each of its readers, one or a process a worker, has given in batches.

The position in samples alone does not say it: each worker batches a part of the stream of its own, and `collate_fn` may make batches
of any size out of the items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import default_collate, default_convert, get_worker_info

from velodrome.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CountingCollate", "StreamPosition"]


class CountingCollate:
    """Makes a batch in `collate_fn`'s place; returns (number of the reader, items of the stream in it, batch).

    Args:
        collate: makes a batch of items; None is PyTorch's own.
        is_batched: whether it is given a list of items, or one.
    """

    def __init__(self, collate: Callable[[Any], Any] | None, *, is_batched: bool) -> None:
        self._collate = collate or (default_collate if is_batched else default_convert)
        self._is_batched = is_batched

    def __call__(self, items: Any) -> tuple[int, int, Any]:
        """Return the batch of these items, and whose it is."""
        info = get_worker_info()
        return 0 if info is None else info.id, len(items) if self._is_batched else 1, self._collate(items)


@dataclass
class StreamPosition:
    """A place in a stream."""

    batch_size: int | None
    """by which batches are made from `begin` on; None for items without batches"""
    begin: list[int]
    """items of each reader before the first of these batches: none, but where the batch size has changed within the epoch"""
    begin_samples: int
    """that were handed out before it"""
    items: list[int]
    """of each reader, that were handed out"""

    @classmethod
    def at_start(cls, batch_size: int | None, num_readers: int) -> StreamPosition:
        """Return the place before the first item."""
        return cls(batch_size, [0] * num_readers, 0, [0] * num_readers)

    @classmethod
    def loaded(cls, state: Mapping[str, Any]) -> StreamPosition:
        """Return the place that a `state_dict` tells."""
        begin, items = (list(map(int, state[name])) for name in ("begin", "items"))
        return cls(state["batch_size"], begin, int(state["begin_samples"]), items)

    def state_dict(self) -> dict[str, Any]:
        """Return the place as plain values."""
        return {
            "batch_size": self.batch_size,
            "begin": list(self.begin),
            "begin_samples": self.begin_samples,
            "items": list(self.items),
        }

    def entered_by(
        self, batch_size: int | None, num_readers: int, *, samples_done: int, can_skip: bool
    ) -> StreamPosition:
        """Return the place for a loader that goes on from it, in batches of a size of its own.

        With the same batch size the batches are made as before, from the same item on. With another one they begin at the position,
        where each reader leaves out its own items.

        Args:
            batch_size, num_readers: of the loader.
            samples_done: samples that were handed out, as the loader counts them.
            can_skip: whether its readers can leave out so many items each.
        Raises:
            DataError: the number of readers differs, or they cannot leave out what they have given.
        """
        parts = " and ".join(map(str, self.items))
        if num_readers != len(self.items):
            then, now = len(self.items), num_readers
            raise DataError(
                f"The saved position is {samples_done} samples into a stream that {_count(then)} read ({parts} items), and this loader has "
                f"{_count(now)}: each reads a part of its own, so that with another number some items would come twice and others not at "
                f"all. Give num_workers={then if then > 1 else 0} until the epoch is over.",
                samples_done=samples_done,
                items=list(self.items),
            )
        if batch_size == self.batch_size:
            return StreamPosition(batch_size, list(self.begin), self.begin_samples, list(self.items))
        if not can_skip and num_readers > 1:
            raise DataError(
                f"The saved position is {samples_done} samples into a data pipe that {_count(num_readers)} read in batches of {self.batch_size} "
                f"({parts} items), and this loader makes batches of {batch_size}: the parts of a pipe cannot be entered in the middle. Give "
                f"batch_size={self.batch_size} until the epoch is over.",
                samples_done=samples_done,
                items=list(self.items),
            )
        if not can_skip:
            return StreamPosition(batch_size, [0], 0, list(self.items))
        return StreamPosition(batch_size, list(self.items), samples_done, list(self.items))


def _count(readers: int) -> str:
    return f"{readers} workers" if readers > 1 else "one process"
