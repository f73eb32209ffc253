"""Reading an iterable dataset, in the training process or in workers: each of its items is seeded by where in the stream it is."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from velodrome.data.randomness import epoch_key, seed_generators

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Streaming", "has_state", "tell_epoch"]

_LAYOUT = Struct("<32sqq")  # what the seeds are hashed from, the epoch, the items done


class Streaming(IterableDataset[Any]):
    """Stands in the dataset's place in PyTorch's loader.

    Random numbers of an item are f(seed, epoch, worker, its number among the worker's own): what shuffles or augments by the global
    generators gives the same again, also in workers that persist. The training process reads as worker 0 of a loader with workers
    does. All processes that train together read the same: they deal out what comes.

    Args:
        dataset: told the epoch by `set_epoch`, where it has one, also in workers.
        is_shared: worker processes read it.
    """

    def __init__(self, dataset: Any, *, is_shared: bool) -> None:
        self.dataset = dataset
        # Workers that persist hold a copy of this object; what is shared with them is this memory.
        self._position = torch.zeros(_LAYOUT.size, dtype=torch.uint8, device="cpu")
        if is_shared:
            self._position.share_memory_()

    def set_position(self, *, seed: int, epoch: int, items_done: int = 0) -> None:
        """Say what the next `iter()` begins: which epoch, and after how many items where the dataset was entered in the middle."""
        packed = bytearray(_LAYOUT.pack(epoch_key(seed, epoch), epoch, items_done))
        self._position.copy_(torch.frombuffer(packed, dtype=torch.uint8))
        tell_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Any]:
        key, epoch, number = _LAYOUT.unpack(bytes(self._position.tolist()))  # SYNC: on the CPU
        info = get_worker_info()
        if info is not None:
            tell_epoch(self.dataset, epoch)
        stream = b"stream:%d:" % (0 if info is None else info.id)
        seed_generators(key, stream + b"%d" % number)
        iterator = iter(self.dataset)
        while True:
            seed_generators(key, stream + b"%d" % number)
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item
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
