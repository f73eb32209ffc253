"""What the user hands in as data, turned into sources of batches once, checked, and put on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from velodrome.data.adopt import adopt, needs_batch_size
from velodrome.data.batches import move, num_samples
from velodrome.data.bound import BoundLoader
from velodrome.data.loader import DataLoader
from velodrome.data.pinned import PinnedRing
from velodrome.data.source import Source
from velodrome.data.threads import limit_threads
from velodrome.free_memory import available_bytes
from velodrome.step.first_batch import check_columns
from velodrome.step.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["DataInUse"]


_MAX_KEPT = 8
_PLENTY_BYTES = 2 * 2**30
"""of free memory: with less, what is kept for the next step may be what the run needs"""


@dataclass(eq=False)
class _Known:
    """Data that became a source, with what was asked for; None for what the data bring themselves."""

    key: Hashable
    data: Any
    source: Source
    batch_size: int | None
    shuffle: bool | None
    used_at: int = 0

    def fits(self, *, batch_size: int | None, shuffle: bool) -> bool:
        """Return whether this is the source that is asked for."""
        same_order = self.shuffle is None or self.shuffle == shuffle
        return same_order and (batch_size is None or batch_size == self.batch_size)


def _identity(data: Any) -> Hashable:
    """Return what tells data apart: a tuple or dict of tensors written anew every epoch is the same data."""
    if type(data) is tuple:
        return tuple(id(item) for item in data)
    if type(data) is dict:
        return tuple((key, id(item)) for key, item in data.items())
    return id(data)


def _own_seed(seed: int) -> int:
    return seed


class DataInUse:
    """Remembers which object became which source, so that the second epoch continues what the first one began.

    The eight used last are kept, with their data and copies on the device: slices made anew every epoch do not pile up.

    Args:
        device: where batches go.
        seed: of the order of loaders that have none of their own; None is PyTorch's initial seed.
        say: shows a line to people.
        rank, size: of this process among those that train together.
        take_seed: returns the seed that all of them shall use, given this process's own.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        seed: int | None,
        say: Callable[[str], None],
        rank: int = 0,
        size: int = 1,
        take_seed: Callable[[int], int] = _own_seed,
    ) -> None:
        self._rank = rank
        self._size = size
        self._take_seed = take_seed
        self._device = device
        self._seed = seed
        self._say = say
        self.order_seed = seed
        """the seed of the order, once there is one"""
        self._known: list[_Known] = []
        self._ring: PinnedRing | None = None
        self._num_uses = 0
        self._were_read = False
        self._said: dict[str, str] = {}
        """the last line about each role"""

    def get(
        self,
        data: Any,
        *,
        role: str,
        batch_size: int | None = None,
        shuffle: bool = False,
        default_batch_size: int | None = None,
        keep: bool = True,
    ) -> Source:
        """Return the source for what the user gave; the same data with the same settings give the same source again.

        Data without batches of their own are one source a batch size and order: what was shuffled for training is not shuffled
        for prediction. Left out, the batch size is the one they were first given with.

        Args:
            data, batch_size, shuffle: see `velodrome.data.adopt`; a source is returned as it is.
            role: "train", "val", ... for messages; the data of "predict" come in their own order and may hold NaN.
            default_batch_size: for a dataset or tensors that were never given a batch size.
            keep: remember the source, when it is new.
        Raises:
            ArgumentError, DataError: see `velodrome.data.adopt`; NaN in data that lie in memory.
        """
        if isinstance(data, Source):
            return data
        is_prediction = role == "predict"
        key = _identity(data)
        for known in self._known:
            if known.key == key and known.fits(batch_size=batch_size, shuffle=shuffle):
                self._use(known)
                return known.source.in_own_order() if is_prediction else known.source
        if batch_size is None and default_batch_size is not None and needs_batch_size(data):
            batch_size = default_batch_size
        source, _ = adopt(data, batch_size=batch_size, shuffle=shuffle, role=role)
        if isinstance(source, DataLoader):
            if source.columns is not None and not is_prediction:
                check_columns(source.columns, role=role)
            source = BoundLoader(
                source, seed=self._order_seed(role), device=self._device, rank=self._rank, size=self._size
            )
            source.loader.say = partial(self._say_about, role)
        elif self._size > 1:
            source.deal_out(rank=self._rank, size=self._size, seed=self._order_seed(role))
        self._skip_what_was_drawn(source)
        if keep:
            self._keep(key, data, source, batch_size, shuffle)
        if is_prediction:
            source = source.in_own_order()
        is_on_cpu = self._device.type == "cpu"
        if role == "train" and is_on_cpu and available_bytes(self._device) >= _PLENTY_BYTES:
            keep_freed_memory()
        line = limit_threads(num_workers=source.num_workers_in_use, is_on_cpu=is_on_cpu)
        if line:
            self._say(line)
        line = f"{role}: {source.describe()}"
        if self._said.get(role) != line:
            self._said[role] = line
            self._say(line)
        return source

    def _say_about(self, role: str, line: str) -> None:
        self._say(f"{role}: {line}")

    def go_on_with(self, seed: int | None, *, were_read: bool) -> None:
        """Take the seed of the run that goes on here, for data that are in use already too.

        Args:
            seed: of the order, if there is one.
            were_read: the run has read its data before, in another process: what is drawn once was drawn there.
        """
        self._were_read = were_read
        for known in self._known:
            self._skip_what_was_drawn(known.source)
        if seed is None:
            return
        self._seed = self.order_seed = seed
        for known in self._known:
            known.source.use_seed(seed)

    def _skip_what_was_drawn(self, source: Source) -> None:
        if self._were_read and isinstance(source, BoundLoader):
            source.loader.skip_single_torch_draw()

    def _order_seed(self, role: str) -> int:
        if self._seed is not None:
            return self._seed
        # A prediction is read in the data's own order: one process may make it alone.
        if role == "predict":
            return torch.initial_seed()
        seed = self._take_seed(torch.initial_seed())
        if role == "train":
            self.order_seed = seed
        return seed

    def needs_batch_size(self, data: Any) -> bool:
        """Return whether the data are a dataset or tensors that were not turned into batches yet."""
        key = _identity(data)
        return all(known.key != key for known in self._known) and needs_batch_size(data)

    def placer(self, source: Source) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        device = self._device
        if device.type == "cpu" or source.gives_placed_batches:
            return lambda batch: (batch, num_samples(batch))
        if device.type == "cuda":
            ring = self._ring = self._ring or PinnedRing(device)
            return lambda batch: (ring(batch), num_samples(batch))
        return lambda batch: (move(batch, device), num_samples(batch))

    def _keep(self, key: Hashable, data: Any, source: Source, batch_size: int | None, shuffle: bool) -> None:
        """Remember a source; forget the one whose last use is longest ago when there are too many."""
        # The data are kept with their id, so that no other object can get it.
        has_own_batches = batch_size is None
        known = _Known(key, data, source, batch_size, None if has_own_batches else shuffle)
        self._known.append(known)
        self._use(known)
        if len(self._known) > _MAX_KEPT:
            self._known.remove(min(self._known, key=lambda each: each.used_at))

    def _use(self, known: _Known) -> None:
        self._num_uses += 1
        known.used_at = self._num_uses
