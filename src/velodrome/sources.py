"""What the user hands in as data, turned into sources of batches once, checked, and put on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from velodrome.data.adopt import BatchIterable, adopt, needs_batch_size
from velodrome.data.batches import move, num_samples
from velodrome.data.loader import DataLoader
from velodrome.step.first_batch import check_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Sources"]


@dataclass(frozen=True)
class _Known:
    """Data that became a source, with what was asked for; None for what the data bring themselves."""

    data: Any
    source: DataLoader | BatchIterable
    batch_size: int | None
    shuffle: bool | None

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


class Sources:
    """Remembers which object became which source, so that the second epoch continues what the first one began.

    Args:
        device: where batches go.
        seed: of the order of loaders that have none of their own; None is PyTorch's initial seed.
        say: shows a line to people.
    """

    def __init__(self, *, device: torch.device, seed: int | None, say: Callable[[str], None]) -> None:
        self._device = device
        self._seed = seed
        self._say = say
        self._known: dict[Hashable, list[_Known]] = {}

    def get(
        self,
        data: Any,
        *,
        role: str,
        batch_size: int | None = None,
        shuffle: bool = False,
        default_batch_size: int | None = None,
    ) -> DataLoader | BatchIterable:
        """Return the source for what the user gave; the same data with the same settings give the same source again.

        Data without batches of their own are one source a batch size and order: what was shuffled for training is not shuffled
        for prediction. Left out, the batch size is the one they were first given with.

        Raises:
            ArgumentError, DataError: see `velodrome.data.adopt`; NaN in data that lie in memory.
        """
        key = _identity(data)
        known = self._known.setdefault(key, [])
        for each in known:
            if each.fits(batch_size=batch_size, shuffle=shuffle):
                return each.source
        if batch_size is None and default_batch_size is not None and needs_batch_size(data):
            batch_size = default_batch_size
        source, line = adopt(data, batch_size=batch_size, shuffle=shuffle, role=role)
        if isinstance(source, DataLoader):
            if source.columns is not None:
                check_columns(source.columns, role=role)
            source.bind(seed=torch.initial_seed() if self._seed is None else self._seed, device=self._device)
            line = (
                line.replace(", in memory", f", in memory on {self._device}", 1)
                if source.device.type != "cpu"
                else line
            )
        # The data are kept with their id, so that no other object can get it.
        own_batches = batch_size is None
        known.append(_Known(data, source, None if own_batches else batch_size, None if own_batches else shuffle))
        if source is not data:
            self._known[id(source)] = [_Known(source, source, None, None)]
        self._say(f"{role}: {line}")
        return source

    def needs_batch_size(self, data: Any) -> bool:
        """Return whether the data are a dataset or tensors that were not turned into batches yet."""
        return not self._known.get(_identity(data)) and needs_batch_size(data)

    def placer(self, source: Any) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        device = self._device
        is_there = device.type == "cpu" or (
            isinstance(source, DataLoader) and source.columns is not None and source.device == device
        )
        if is_there:
            return lambda batch: (batch, num_samples(batch))
        return lambda batch: (move(batch, device), num_samples(batch))
