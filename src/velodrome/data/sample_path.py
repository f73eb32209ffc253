"""Everything that is not in memory: PyTorch's own loader and workers, told which samples to fetch in which order."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Sized
from contextlib import nullcontext
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, IterDataPipe

from velodrome.data.batches import num_samples
from velodrome.data.failures import Failure, describe_error, remedy_for
from velodrome.data.fetching import Fetching, Request, hand_over
from velodrome.data.order import epoch_generator, epoch_order
from velodrome.data.randomness import GeneratorsKept, epoch_key
from velodrome.data.share import EMPTY, WHOLE, Share, draw_together
from velodrome.data.stream_position import CountingCollate, StreamPosition
from velodrome.data.streaming import Streaming, has_state, tell_epoch
from velodrome.data.workers import DEFAULT_TIMEOUT_S, WatchedLoader
from velodrome.errors import ArgumentError, DataError, FetchError, VelodromeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["SamplePath"]


class SamplePath:
    """Batches of a dataset that is read sample by sample.

    One PyTorch loader serves all epochs, so that persistent workers persist; the order it follows is laid out anew for each.
    Samples are seeded one by one, see `randomness`, and nothing is drawn from the global generators.

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
        self._dataset_is_entered = False
        self._batches_before: int | None = None
        self._stream_loaded: StreamPosition | None = None
        self._stream_position: StreamPosition | None = None
        self._order = _Order(batch_size, drop_last, gives_batches=batch_sampler is not None, has_own=self.has_own_order)
        self.last_indices: Any = None
        """of the batch that was handed out last, where they are known"""
        timeout_s = torch_arguments.pop("timeout", None)
        if timeout_s is not None and not (type(timeout_s) in (int, float) and timeout_s >= 0):
            raise ArgumentError(
                f"timeout={timeout_s!r} is not a time. It must be a number of seconds, or 0 for no end."
            )
        arguments: dict[str, Any] = {
            "num_workers": num_workers,
            "generator": self._worker_generator,
            "timeout_s": DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
            "what": type(dataset).__name__,
            **torch_arguments,
        }
        # A pipe of PyTorch's has seeds and shards of its own.
        self._is_seeded = not isinstance(dataset, IterDataPipe)
        self._stream = Streaming(dataset, num_workers=num_workers) if self._is_iterable and self._is_seeded else None
        is_batched = batch_size is not None or batch_sampler is not None
        try:
            if self._is_iterable:
                self._loader = WatchedLoader(
                    dataset if self._stream is None else self._stream,
                    batch_size=batch_size, drop_last=drop_last,
                    collate_fn=CountingCollate(collate_fn, is_batched=is_batched), **arguments,
                )  # fmt: skip
            else:
                fetching = Fetching(dataset, collate_fn, is_batched=is_batched)
                order = {"batch_sampler": self._order} if is_batched else {"batch_size": None, "sampler": self._order}
                self._loader = WatchedLoader(fetching, collate_fn=hand_over, **order, **arguments)
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
    def num_workers(self) -> int:
        """How many processes fetch samples."""
        return self._loader.num_workers

    def end_workers(self) -> None:
        """End the workers that persist."""
        self._loader.end_workers(self._loader._iterator)

    @property
    def has_own_order(self) -> bool:
        """Whether a sampler of the user's decides the order: it may draw from any generator."""
        return self._sampler is not None or self._batch_sampler is not None

    def enter(self, start: int, epoch: int, *, seed: int, share: Share = WHOLE) -> None:
        """Ask a sampler of the user's for what is skipped now, while the generators are as they were when the epoch began."""
        own = self._batch_sampler if self._batch_sampler is not None else self._sampler
        if own is None:
            return
        self._tell_epoch(own, epoch)
        entered: Iterator[Any] = iter(own if share.size == 1 else draw_together(own, seed=seed, epoch=epoch))
        done = num_items = 0
        while done < start:
            item = next(entered, None)
            if item is None:
                raise DataError(
                    f"The saved position is {start} samples into the epoch, and {type(own).__name__} gave {done} samples in all. "
                    f"Go on with the sampler of then, or start a new run.",
                    samples_done=start,
                )
            size = len(item) if self._batch_sampler is not None else 1
            if done + size > start:  # a batch that the position falls into
                entered = chain([_without_first(item, start - done)], entered)
                break
            done += size
            num_items += 1
        self._entered = entered
        self._batches_before = num_items if self._batch_sampler is not None else None

    def batches_left(self, start: int) -> int | None:
        """Return how many batches there are after sample `start`, which was entered; None where that is not known."""
        if self._is_iterable:
            loaded = self._stream_loaded
            if loaded is None or not any(loaded.begin) or not isinstance(self._dataset, Sized):
                return None
            left = max(0, len(self._dataset) - sum(loaded.items))
        elif self._batch_sampler is not None:
            is_known = self._batches_before is not None and isinstance(self._batch_sampler, Sized)
            return len(self) - (self._batches_before or 0) if is_known else None
        else:
            left = None if self.num_samples is None else self.num_samples - start
            if left is None:
                return None
        size = self._batch_size or 1
        return left // size if self._drop_last else -(-left // size)

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

        Raises:
            FetchError: the dataset raised, or a worker died or hangs.
        """
        if self._seeds_workers:
            # For what seeds itself by `torch.initial_seed()` when a worker starts. The items of an iterable dataset are dealt out:
            # every process must read the same.
            own = f"workers of rank {share.rank}" if share.rank and not self._is_iterable else "workers"
            self._worker_generator.manual_seed(epoch_generator(seed, epoch, own).initial_seed())
        if self._is_iterable:
            yield from self._iterable_batches(epoch, start, seed, share)
            return
        own = self._batch_sampler if self._batch_sampler is not None else self._sampler
        self._order.position = 0
        if own is None:
            order = epoch_order(len(self._dataset), seed=seed, epoch=epoch, shuffle=shuffle)
            self._order.source = order.tolist()  # SYNC: on the CPU
        elif self._entered is not None:
            self._order.source, self._entered, self._order.position, start = self._entered, None, start, 0
        else:
            self._tell_epoch(own, epoch)
            self._order.source = own if share.size == 1 else draw_together(own, seed=seed, epoch=epoch)
        self._order.start = start
        self._order.share = share
        self._order.key = epoch_key(seed, epoch)
        # PyTorch's loader asks for its order at once and keeps that iterator; the sizes belong to this epoch alone.
        sizes = self._order.sizes = deque()
        for batch in self._batches():
            while sizes[0][0] < 0:
                yield -sizes.popleft()[0], EMPTY
            size, self.last_indices = sizes.popleft()
            yield size, batch
        while sizes:
            yield -sizes.popleft()[0], EMPTY

    def _batches(self) -> Iterator[Any]:
        iterator = None
        try:
            iterator = iter(self._loader)
            for batch in iterator:
                if type(batch) is Failure:
                    batch.raise_here()
                yield batch
        except Exception:
            self._loader.end_workers(iterator)
            raise

    @property
    def is_seeded(self) -> bool:
        """Whether random numbers of the data are a function of seed, epoch and sample, as far as Velodrome can see."""
        return self._is_seeded

    def own_state(self) -> Any:
        """Return the position that an iterable dataset tells itself; None where it does not, or workers have copies of it."""
        return self._dataset.state_dict() if self._tells_position else None

    def enter_dataset(self, state: Any) -> None:
        """Put an iterable dataset where `own_state` was taken; the next epoch goes on from there without reading what was before."""
        if self._tells_position:
            self._dataset.load_state_dict(state)
            self._dataset_is_entered = True

    def enter_stream(self, state: Mapping[str, Any] | None, samples_done: int) -> None:
        """Have an iterable dataset entered at a saved place; nothing else is asked for it.

        Args:
            state: what `stream_state` gave; None where an earlier version saved none.
            samples_done: with it.
        Raises:
            DataError: the place cannot be kept.
        """
        self._stream_loaded = self._stream_position = self._batches_before = None
        if self._is_iterable and state is not None:
            num_readers, can_skip = max(1, self._loader.num_workers), self._stream is not None
            self._stream_loaded = self._stream_position = StreamPosition.loaded(state).entered_by(
                self._batch_size, num_readers, samples_done=samples_done, can_skip=can_skip
            )

    def stream_state(self) -> dict[str, Any] | None:
        """Return the place up to which an iterable dataset was handed out; None where there is none."""
        return None if self._stream_position is None else self._stream_position.state_dict()

    @property
    def _tells_position(self) -> bool:
        return self._is_iterable and not self._loader.num_workers and has_state(self._dataset)

    def _iterable_batches(self, epoch: int, start: int, seed: int, share: Share) -> Iterator[tuple[int, Any]]:
        is_entered, self._dataset_is_entered = self._dataset_is_entered, False
        loaded = self._stream_loaded if start else None
        place = StreamPosition.at_start(self._batch_size, max(1, self._loader.num_workers))
        target = start if loaded is None else sum(loaded.items)
        if is_entered:
            place.begin, place.begin_samples = [target], start
        elif loaded is not None:
            place.begin, place.begin_samples = list(loaded.begin), loaded.begin_samples
        place.items = list(place.begin)
        if self._stream is None:
            tell_epoch(self._dataset, epoch)
            batches = iter(self._loader) if share.size == 1 else draw_together(self._loader, seed=seed, epoch=epoch)
        else:
            self._stream.set_position(
                seed=seed,
                epoch=epoch,
                items_done=target if is_entered else 0,
                skipped=() if is_entered else place.begin,
            )
            batches = self._stream_batches()
        sized = self._sized(batches, start, place, target=None if loaded is None else target)
        yield from sized if share.size == 1 else share.deal(sized)

    def _stream_batches(self) -> Iterator[Any]:
        """Yield the batches of an iterable dataset; what it draws is its own, and its errors are named."""
        kept = nullcontext() if self._loader.num_workers else GeneratorsKept()
        iterator, num_read = iter(self._loader), 0
        while True:
            try:
                with kept:
                    batch = next(iterator)
            except StopIteration:
                return
            except VelodromeError:
                self._loader.end_workers(iterator)
                raise
            except Exception as error:
                self._loader.end_workers(iterator)
                name = type(self._dataset).__name__
                raise FetchError(
                    f"Reading {name} failed after {num_read} batches: {describe_error(error)}. "
                    f"{remedy_for(error) or 'Check what it reads there.'}",
                    batches_read=num_read,
                    traceback="".join(traceback.format_exception(error)),
                ) from error
            num_read += 1
            yield batch

    def _sized(
        self, batches: Iterable[Any], start: int, place: StreamPosition, *, target: int | None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the batches after sample `start` with their sizes, and note in `place` how far they reach.

        Args:
            batches: with reader and number of items, from `place` on.
            start: samples done.
            place: of the first batch.
            target: items done; None where only the samples are known.
        Raises:
            DataError: the position lies within a batch.
        """
        done, is_begun = place.begin_samples, False
        for reader, num_items, batch in batches:
            size = 1 if self._batch_size is None else num_samples(batch)
            done += size
            place.items[reader] += num_items
            reached, wanted = (done, start) if target is None else (sum(place.items), target)
            if not is_begun:
                if reached <= wanted:
                    continue
                before = reached - (size if target is None else num_items)
                if before < wanted:
                    raise DataError(
                        f"The saved position is {wanted} samples into the epoch, and this loader makes one batch of samples {before} to "
                        f"{reached - 1} of it, which cannot be cut: some would come twice. Give the batch_size of then until the epoch is over.",
                        samples_done=start,
                    )
                self._stream_position, is_begun = place, True
            yield size, batch


def _without_first(batch: Sequence[Any], number: int) -> Sequence[Any]:
    """Return the indices of a batch without so many that were handed out before: it was made otherwise then."""
    return list(batch)[number:]


class _Order:
    """The sampler that PyTorch's loader asks: it repeats what was laid out for this epoch, drawing no earlier than needed.

    No earlier than needed, because a sampler may be endless, or draw from the generator that the model also uses.

    Args:
        batch_size: how many indices of `source` make a batch; None hands them out one by one.
        drop_last: leave out a last batch that is short.
        gives_batches: the elements of `source` are lists of indices already.
        has_own: a sampler of the user's decides the order, and may name a sample twice.
    """

    def __init__(self, batch_size: int | None, drop_last: bool, *, gives_batches: bool, has_own: bool) -> None:
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._gives_batches = gives_batches
        self._has_own = has_own
        self.source: Iterable[Any] = ()
        self.start = 0
        self.position = 0
        """of the first element of `source` in the epoch"""
        self.key = b""
        """of the epoch, see `epoch_key`"""
        self.share = WHOLE
        self.sizes: deque[tuple[int, Any]] = deque()
        """of each batch that was asked for, and not yet handed out: how many samples, negative where nothing of it is asked for;
        and the indices asked for"""

    def __iter__(self) -> Iterator[Request]:
        batches = self._lay_out(self.source, self.start, self.position)
        if self._batch_size is None and not self._gives_batches:
            return self._items(batches, self.sizes, self.share, self.key)
        return self._slices(batches, self.sizes, self.share, self.key)

    def _lay_out(self, source: Iterable[Any], start: int, position: int) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the batches of all processes with their positions; where items are not batched, those that are dealt out at once."""
        if self._gives_batches:
            done = 0
            for batch in source:
                own = batch if done >= start else _without_first(batch, start - done)
                done += len(batch)
                if done > start:
                    yield position + done - len(own), own
            return
        indices = islice(source, start, None)
        position += start
        size = self.share.size if self._batch_size is None else self._batch_size
        while batch := list(islice(indices, size)):
            if len(batch) < size and self._drop_last:
                return
            yield position, batch
            position += len(batch)

    def _slices(
        self, batches: Iterable[tuple[int, Sequence[Any]]], sizes: deque[tuple[int, Any]], share: Share, key: bytes
    ) -> Iterator[Request]:
        for position, batch in batches:
            start, end = (0, len(batch)) if share.size == 1 else share.of(len(batch))
            own = batch if share.size == 1 else batch[start:end]
            sizes.append((len(batch) if share.size == 1 or end > start else -len(batch), own))
            if share.size == 1 or end > start:
                yield Request(own, key, position + start, self._has_own)

    def _items(
        self, rounds: Iterable[tuple[int, Sequence[Any]]], sizes: deque[tuple[int, Any]], share: Share, key: bytes
    ) -> Iterator[Request]:
        for position, items in rounds:
            has_one = share.rank < len(items)
            sizes.append((len(items) if has_one else -len(items), items[share.rank : share.rank + 1]))
            if has_one:
                yield Request(items[share.rank], key, position + share.rank, self._has_own)
