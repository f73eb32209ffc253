"""What the user hands in as data, turned into sources of batches once, checked, and put on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from velodrome.data.adopt import BatchIterable, adopt, needs_batch_size
from velodrome.data.batches import move, num_samples
from velodrome.data.loader import DataLoader
from velodrome.step.first_batch import check_columns

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Sources"]


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
        self._known: dict[int, tuple[Any, DataLoader | BatchIterable]] = {}

    def get(
        self,
        data: Any,
        *,
        role: str,
        batch_size: int | None = None,
        shuffle: bool = False,
        default_batch_size: int | None = None,
    ) -> DataLoader | BatchIterable:
        """Return the source for what the user gave; the same object gives the same source again.

        Raises:
            ArgumentError, DataError: see `velodrome.data.adopt`; NaN in data that lie in memory.
        """
        known = self._known.get(id(data))
        if known is not None:
            return known[1]
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
        self._known[id(data)] = (data, source)
        self._known[id(source)] = (source, source)
        self._say(f"{role}: {line}")
        return source

    def needs_batch_size(self, data: Any) -> bool:
        """Return whether the data are a dataset or tensors that were not turned into batches yet."""
        return id(data) not in self._known and needs_batch_size(data)

    def placer(self, source: Any) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        device = self._device
        is_there = device.type == "cpu" or (
            isinstance(source, DataLoader) and source.columns is not None and source.device == device
        )
        if is_there:
            return lambda batch: (batch, num_samples(batch))
        return lambda batch: (move(batch, device), num_samples(batch))
