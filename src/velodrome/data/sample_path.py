"""Everything that is not in memory: PyTorch's own loader and workers, told which samples to fetch in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset

from velodrome.data.batches import num_samples
from velodrome.data.order import epoch_generator, epoch_order
from velodrome.data.share import EMPTY, WHOLE, Share, draw_together
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["SamplePath"]


class SamplePath:
    """Batches of a dataset that is read sample by sample.

    One PyTorch loader serves all epochs, so that persistent workers persist; the order it follows is laid out anew for each.
    Workers are seeded by (seed, epoch) and nothing is drawn from the global generator.

    Args: as those of `velodrome.DataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None,
        *,
        sampler: Iterable[Any] | None,
        batch_sampler: Iterable[list[int]] | None,
        drop_last: bool,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        generator: torch.Generator | None,
        **torch_arguments: Any,
    ) -> None:
        self._is_iterable = isinstance(dataset, IterableDataset)
        if not self._is_iterable and not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{type(dataset).__name__} is not a dataset: it has no __getitem__. "
                f"Give a Dataset, tensors, or pass an iterable of ready batches straight to fit()."
            )
        if not self._is_iterable and batch_sampler is None and sampler is None and not hasattr(dataset, "__len__"):
            raise DataError(
                f"{type(dataset).__name__} has no __len__, so there is no order to draw. Give it one, or a sampler."
            )
        self._dataset = dataset
        self._batch_size = batch_size
        self._sampler = sampler
        self._batch_sampler = batch_sampler
        self._drop_last = drop_last
        self._worker_generator = generator or torch.Generator()
        self._seeds_workers = generator is None
        self._entered: Iterator[Any] | None = None
        self._order = _Order(batch_size, drop_last, gives_batches=batch_sampler is not None)
        arguments: dict[str, Any] = {
            "num_workers": num_workers,
            "collate_fn": collate_fn,
            "generator": self._worker_generator,
            **torch_arguments,
        }
        try:
            if self._is_iterable:
                self._loader = TorchDataLoader(dataset, batch_size=batch_size, drop_last=drop_last, **arguments)
            elif batch_size is None and batch_sampler is None:
                self._loader = TorchDataLoader(dataset, batch_size=None, sampler=self._order, **arguments)
            else:
                self._loader = TorchDataLoader(dataset, batch_sampler=self._order, **arguments)
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"PyTorch's DataLoader refused its arguments: {error}") from error

    @property
    def num_samples(self) -> int | None:
        """How many samples an epoch has; None when nothing says."""
        if self._is_iterable or self._batch_sampler is not None:
            return None
        source = self._dataset if self._sampler is None else self._sampler
        return len(source) if isinstance(source, Sized) else None

    def __len__(self) -> int:
        if self._is_iterable:
            return len(self._loader)
        if self._batch_sampler is not None:
            return len(self._batch_sampler)  # type: ignore[arg-type]
        total = self.num_samples
        if total is None:
            raise TypeError(f"the length of {type(self._sampler).__name__} is not known")
        size = self._batch_size or 1
        return total // size if self._drop_last else -(-total // size)

    @property
    def has_own_order(self) -> bool:
        """Whether a sampler of the user's decides the order: it may draw from any generator."""
        return self._sampler is not None or self._batch_sampler is not None

    def enter(self, start: int, epoch: int) -> None:
        """Ask a sampler of the user's for what is skipped now, while the generators are as they were when the epoch began."""
        own = self._batch_sampler if self._batch_sampler is not None else self._sampler
        if own is None:
            return
        self._tell_epoch(own, epoch)
        self._entered = iter(own)
        done = 0
        while done < start:
            item = next(self._entered)
            done += len(item) if self._batch_sampler is not None else 1

    def _tell_epoch(self, own: Any, epoch: int) -> None:
        for listener in (own, getattr(own, "sampler", None)):
            if hasattr(listener, "set_epoch"):
                listener.set_epoch(epoch)  # type: ignore[union-attr]

    def batches(
        self, *, seed: int, epoch: int, shuffle: bool, start: int, share: Share = WHOLE
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number of samples, batch) for each batch of an epoch from sample `start` on.

        A sampler is asked for what was skipped, the dataset is not; an iterable dataset has to be read up to `start`. Of a
        share only its own samples are fetched; its batch is `EMPTY` where it has none.
        """
        if self._seeds_workers:
            # The items of an iterable dataset are dealt out: every process must read the same.
            own = f"workers of rank {share.rank}" if share.rank and not self._is_iterable else "workers"
            self._worker_generator.manual_seed(epoch_generator(seed, epoch, own).initial_seed())
        if self._is_iterable:
            yield from self._iterable_batches(epoch, start, seed, share)
            return
        own = self._batch_sampler if self._batch_sampler is not None else self._sampler
        if own is None:
            order = epoch_order(len(self._dataset), seed=seed, epoch=epoch, shuffle=shuffle)
            self._order.source = order.tolist()  # SYNC: on the CPU
        elif self._entered is not None:
            self._order.source, self._entered, start = self._entered, None, 0
        else:
            self._tell_epoch(own, epoch)
            self._order.source = own if share.size == 1 else draw_together(own, seed=seed, epoch=epoch)
        self._order.start = start
        self._order.share = share
        # PyTorch's loader asks for its order at once and keeps that iterator; the sizes belong to this epoch alone.
        sizes = self._order.sizes = deque()
        for batch in self._loader:
            while sizes[0] < 0:
                yield -sizes.popleft(), EMPTY
            yield sizes.popleft(), batch
        while sizes:
            yield -sizes.popleft(), EMPTY

    def _iterable_batches(self, epoch: int, start: int, seed: int, share: Share) -> Iterator[tuple[int, Any]]:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if share.size == 1:
            yield from self._sized(self._loader, start)
        else:
            yield from share.deal(self._sized(draw_together(self._loader, seed=seed, epoch=epoch), start))

    def _sized(self, batches: Iterable[Any], start: int) -> Iterator[tuple[int, Any]]:
        done = 0
        for batch in batches:
            size = 1 if self._batch_size is None else num_samples(batch)
            done += size
            if done > start:
                yield size, batch


class _Order:
    """The sampler that PyTorch's loader asks: it repeats what was laid out for this epoch, drawing no earlier than needed.

    No earlier than needed, because a sampler may be endless, or draw from the generator that the model also uses.

    Args:
        batch_size: how many indices of `source` make a batch; None hands them out one by one.
        drop_last: leave out a last batch that is short.
        gives_batches: the elements of `source` are lists of indices already.
    """

    def __init__(self, batch_size: int | None, drop_last: bool, *, gives_batches: bool) -> None:
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._gives_batches = gives_batches
        self.source: Iterable[Any] = ()
        self.start = 0
        self.share = WHOLE
        self.sizes: deque[int] = deque()
        """how many samples each batch that was asked for, and not yet handed out, has; negative where nothing of it is asked for"""

    def __iter__(self) -> Iterator[Any]:
        batches = self._lay_out(self.source, self.start)
        if self._batch_size is None and not self._gives_batches:
            return self._items(batches, self.sizes, self.share)
        return self._slices(batches, self.sizes, self.share)

    def _lay_out(self, source: Iterable[Any], start: int) -> Iterator[Sequence[Any]]:
        """Yield the batches of all processes; where the dataset's own items are the batches, those that are dealt out at once."""
        if self._gives_batches:
            done = 0
            for batch in source:
                done += len(batch)
                if done > start:
                    yield batch
            return
        indices = islice(source, start, None)
        size = self.share.size if self._batch_size is None else self._batch_size
        while batch := list(islice(indices, size)):
            if len(batch) < size and self._drop_last:
                return
            yield batch

    def _slices(self, batches: Iterable[Sequence[Any]], sizes: deque[int], share: Share) -> Iterator[Any]:
        for batch in batches:
            if share.size == 1:
                sizes.append(len(batch))
                yield batch
                continue
            start, end = share.of(len(batch))
            sizes.append(len(batch) if end > start else -len(batch))
            if end > start:
                yield batch[start:end]

    def _items(self, rounds: Iterable[Sequence[Any]], sizes: deque[int], share: Share) -> Iterator[Any]:
        for items in rounds:
            has_one = share.rank < len(items)
            sizes.append(len(items) if has_one else -len(items))
            if has_one:
                yield items[share.rank]
