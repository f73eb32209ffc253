"""Reading an iterable dataset, in the training process or in workers: each of its items is seeded by where in the stream it is."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from velodrome.data.randomness import epoch_key, seed_generators

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Streaming", "has_state", "tell_epoch"]

_LAYOUT = Struct("<32sqq")  # what the seeds are hashed from, the epoch, the items done
_SKIPPED = Struct("<q")  # by one reader; they follow one another


class Streaming(IterableDataset[Any]):
    """Stands in the dataset's place in PyTorch's loader.

    Random numbers of an item are f(seed, epoch, worker, its number among the worker's own): what shuffles or augments by the global
    generators gives the same again, also in workers that persist. The training process reads as worker 0 of a loader with workers
    does. All processes that train together read the same: they deal out what comes.

    Args:
        dataset: told the epoch by `set_epoch`, where it has one, also in workers.
        num_workers: processes that read it.
    """

    def __init__(self, dataset: Any, *, num_workers: int) -> None:
        self.dataset = dataset
        self.num_readers = max(1, num_workers)
        # Workers that persist hold a copy of this object; what is shared with them is this memory.
        size = _LAYOUT.size + _SKIPPED.size * self.num_readers
        self._position = torch.zeros(size, dtype=torch.uint8, device="cpu")
        self._num_passed = torch.zeros(self.num_readers, dtype=torch.int64, device="cpu")
        if num_workers:
            self._position.share_memory_()
            self._num_passed.share_memory_()

    @property
    def num_passed(self) -> int:
        """How many items the readers have left out so far, all epochs together: it grows while none can give a batch yet."""
        return int(self._num_passed.sum())  # SYNC: on the CPU

    def set_position(self, *, seed: int, epoch: int, items_done: int = 0, skipped: Sequence[int] = ()) -> None:
        """Say what the next `iter()` begins.

        Args:
            seed, epoch: of the order.
            items_done: where the dataset was entered in the middle, after so many.
            skipped: items that each reader reads, and leaves out.
        """
        packed = bytearray(_LAYOUT.pack(epoch_key(seed, epoch), epoch, items_done))
        for number in skipped or [0] * self.num_readers:
            packed += _SKIPPED.pack(number)
        self._position.copy_(torch.frombuffer(packed, dtype=torch.uint8))
        tell_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Any]:
        position = bytes(self._position.tolist())  # SYNC: on the CPU
        key, epoch, number = _LAYOUT.unpack_from(position)
        info = get_worker_info()
        reader = 0 if info is None else info.id
        first = number + _SKIPPED.unpack_from(position, _LAYOUT.size + _SKIPPED.size * reader)[0]
        if info is not None:
            tell_epoch(self.dataset, epoch)
        stream = b"stream:%d:" % reader
        seed_generators(key, stream + b"%d" % number)
        iterator = iter(self.dataset)
        while True:
            seed_generators(key, stream + b"%d" % number)
            try:
                item = next(iterator)
            except StopIteration:
                return
            if number >= first:
                yield item
            else:
                self._num_passed[reader] += 1
            number += 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return repr(self.dataset)  # PyTorch warns by it of a length that is wrong


def tell_epoch(dataset: Any, epoch: int) -> None:
    """Tell the dataset which epoch comes, where it wants to know."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)


def has_state(data: Any) -> bool:
    """Return whether data tell their position themselves."""
    return hasattr(data, "state_dict") and hasattr(data, "load_state_dict")
