"""What the user hands in as data, turned into something the loop can run: a loader, or an iterable with its checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)
from torch.utils.data import DataLoader as TorchDataLoader

from velodrome.data.batches import num_samples, tensors_from_arrays
from velodrome.data.columns import columns_from
from velodrome.data.loader import DataLoader
from velodrome.data.origin import origin_of_iterable
from velodrome.data.own_order import check_own_order
from velodrome.data.own_state import position_of, put_at, put_iterator_at
from velodrome.data.share import WHOLE, Share, describe_sharded, draw_together, is_sharded
from velodrome.data.source import Source
from velodrome.errors import ArgumentError, DataError

__all__ = ["BatchIterable", "adopt", "needs_batch_size"]


class Restarting:
    """What a function without arguments yields, a generator function say: it is called anew every epoch."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.is_sharded = getattr(function, "is_sharded", False)
        """whether the function yields this process's batches only, by its own word"""
        self._first: object = None

    def __iter__(self) -> Iterator[Any]:
        batches = self.function()
        if not isinstance(batches, Iterable):
            raise ArgumentError(
                f"The function {self.name} given as data returned a {type(batches).__name__}, which cannot be iterated. It must "
                f"yield batches, or return an iterable of them."
            )
        if batches is self._first:
            raise ArgumentError(
                f"The function {self.name} given as data returned the same {type(batches).__name__} twice. It must begin anew "
                f"every time it is called."
            )
        iterator = iter(batches)
        self._first = batches if iterator is batches else None  # kept, so that no other object can be taken for it
        return iterator

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.function, "__name__", type(self.function).__name__)


class BatchIterable(Source):
    """Any iterable of ready batches; refuses to pass an exhausted generator off as an empty epoch."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self._epochs_begun = 0
        self._epoch = 0
        self._share = WHOLE
        self._seed = 0
        self._is_sharded = False
        self._is_entered = False
        self._state_to_enter: Mapping[str, Any] | None = None
        self._iterator: Any = None

    def deal_out(self, *, rank: int, size: int, seed: int) -> None:
        """From now on give this process its batches only: every `size`-th one, or all where the data divide themselves.

        Args:
            rank, size: of this process among those that train together.
            seed: of what the data draw while they are iterated over; the same in every process.
        """
        self._is_sharded = size > 1 and is_sharded(self.data)
        self._share = WHOLE if self._is_sharded else Share(rank, size)
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Tell the iterable, or its sampler, which epoch comes, when it wants to know."""
        self._epoch = epoch
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)  # type: ignore[attr-defined]
            return
        for part in ("sampler", "batch_sampler", "dataset"):
            listener = getattr(self.data, part, None)
            if hasattr(listener, "set_epoch"):
                listener.set_epoch(epoch)  # type: ignore[union-attr]

    def describe(self) -> str:
        """Say in one line how the data are read."""
        try:
            count = f"{len(self.data):,} batches"  # type: ignore[arg-type]
        except TypeError:  # PyTorch's loader has a length only when its dataset has
            count = "batches of unknown number"
        line = f"{count} from {type(self.data).__name__}, used as it is"
        if isinstance(self.data, Restarting):
            line = f"{count} from {self.data.name}(), called every epoch"
        if self._is_sharded:
            return f"{line}, {describe_sharded(self.data)}"
        if self._share.size > 1:
            return (
                f"{line}, dealt out batch by batch among {self._share.size} processes, each of which reads them all "
                f"(data that divide themselves say so with is_sharded = True)"
            )
        return line

    def in_own_order(self) -> BatchIterable:
        """Return the iterable itself.

        Raises:
            ArgumentError: it is a loader of PyTorch's that shuffles or leaves samples out.
        """
        if isinstance(self.data, TorchDataLoader):
            check_own_order(self.data)
        return self.whole()

    def whole(self) -> BatchIterable:
        """Return all batches, for every process; itself where there is one process, or the data divide themselves."""
        return self if self._share.size == 1 else BatchIterable(self.data)

    def position(self, epoch: int) -> dict[str, Any] | None:
        """Return the position that the data tell themselves, by a `state_dict` of their own; None where they have none."""
        del epoch
        return position_of(self.data, self._iterator)

    @property
    def divides_itself(self) -> bool:
        """Whether the data give each process its part by themselves."""
        return is_sharded(self.data)

    @property
    def has_own_order(self) -> bool:
        """Whether nobody but the data can tell the order of an epoch."""
        return not self.can_enter

    @property
    def can_enter(self) -> bool:
        """Whether the data tell their position."""
        return position_of(self.data, self._iterator) is not None

    @property
    def is_read_once(self) -> bool:
        """Whether the data are an iterator."""
        return isinstance(self.data, Iterator)

    def go_to(self, epoch: int, state: Mapping[str, Any] | None, batches_done: int) -> int:
        """Make the next `iter()` go on inside an epoch, where the data can.

        Returns:
            The batches done.
        """
        self.set_epoch(epoch)
        self._is_entered = state is not None and put_at(state, self.data)
        self._state_to_enter = state if self._is_entered else None
        return batches_done

    def skip(self, iterator: Iterator[Any], batches: int) -> int | None:
        """Read what comes before the position and throw it away, unless the data were entered in the middle.

        Returns:
            How many samples it had; None where nobody knows: nothing was read, or other processes have a part of it.
        """
        if self._is_entered:
            return None
        samples = sum(num_samples(batch) for batch in islice(iterator, batches))
        return samples if self._share.size == 1 else None

    @property
    def draws_in_workers(self) -> bool:
        """Whether worker processes draw numbers that are not a function of seed, epoch and sample: those that persist go on drawing."""
        return getattr(self.data, "persistent_workers", False) is True

    @property
    def num_workers_in_use(self) -> int:
        """How many processes of PyTorch's loader fetch samples while the loop computes."""
        workers = getattr(self.data, "num_workers", 0)
        return workers if isinstance(workers, int) else 0

    def use_seed(self, seed: int) -> None:
        """Take another seed: that of the run that goes on here."""
        self._seed = seed

    def origin(self) -> tuple[str, dict[str, Any]]:
        """Return the class of the data, and how they are read."""
        name = self.data.name if isinstance(self.data, Restarting) else ""
        return origin_of_iterable(self.data, name=name, workers=self.num_workers_in_use)

    def describe_data(self) -> dict[str, Any]:
        """Return what must be the same when a run goes on: how many batches, where that is known."""
        try:
            return {"batches": len(self.data)}  # type: ignore[arg-type]
        except TypeError:
            return {}

    def __len__(self) -> int:
        return -(-len(self.data) // self._share.size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self._epochs_begun += 1
        if self._share.size > 1:
            sized = ((1, batch) for batch in draw_together(self._begin_later(), seed=self._seed, epoch=self._epoch))
            return (batch for _, batch in self._share.deal(sized))
        return self._begin()

    def _begin_later(self) -> Iterator[Any]:
        yield from self._begin()

    def _begin(self) -> Iterator[Any]:
        """Make the iterator now: what that draws comes before a run that goes on puts the generators back."""
        iterator = self._iterator = iter(self.data)
        state, self._state_to_enter = self._state_to_enter, None
        if state is not None:
            put_iterator_at(state, iterator)
        return self._iterate(iterator)

    def _iterate(self, iterator: Iterator[Any]) -> Iterator[Any]:
        if iterator is self.data and self._epochs_begun > 1:
            first = next(iterator, _NOTHING)
            if first is _NOTHING:
                raise DataError(
                    f"The {type(self.data).__name__} given as data is exhausted: epoch {self._epochs_begun} has 0 batches. "
                    f"A generator can be run through only once. Give a list, a DataLoader, or an object whose __iter__ starts anew.",
                    epoch=self._epochs_begun,
                )
            yield tensors_from_arrays(first)
        # `yield from` would close the user's generator when an epoch is left early; the next one goes on with it.
        is_converted = None
        for batch in iterator:
            if is_converted is None:
                is_converted = tensors_from_arrays(batch) is not batch
            yield tensors_from_arrays(batch) if is_converted else batch


_NOTHING = object()


def adopt(
    data: Any, *, batch_size: int | None = None, shuffle: bool = False, role: str = "data"
) -> tuple[DataLoader | BatchIterable, str]:
    """Turn what the user gave into a loader or a checked iterable, with a line that says what was done.

    Args:
        data: a `velodrome.DataLoader`, a PyTorch `DataLoader`, an iterable of batches or a function that yields them; or a dataset,
            tensors or arrays with `batch_size`.
        batch_size: samples a batch for a dataset or tensors; must be left out for what has its own.
        shuffle: for a dataset or tensors only.
        role: "train", "val", ... for messages.
    Raises:
        ArgumentError: no batch size where one is needed, or two of them; or something that cannot be iterated.
    """
    if isinstance(data, (DataLoader, BatchIterable)):
        _refuse_batch_size(batch_size, data, role)
        return data, data.describe()
    if isinstance(data, TorchDataLoader):
        _refuse_batch_size(batch_size, data, role)
        return _rebuild(data)
    _refuse_nested_tensors(data, role)
    if needs_batch_size(data) or (batch_size is not None and _is_map_style(data)):
        if batch_size is None:
            own = " With batch_size=None there, its items are the batches." if isinstance(data, IterableDataset) else ""
            raise ArgumentError(
                f"{role} is a {type(data).__name__}, which needs a batch size. Give batch_size=64, say, or wrap it in velodrome.DataLoader.{own}"
            )
        loader = DataLoader(data, batch_size, shuffle=shuffle and not isinstance(data, IterableDataset))
        return loader, loader.describe()
    if not isinstance(data, (Iterable, type, nn.Module)) and callable(data):
        _refuse_batch_size(batch_size, data, role)
        data = Restarting(cast("Callable[[], Iterable[Any]]", data))
    if isinstance(data, Iterable):
        _refuse_batch_size(batch_size, data, role)
        iterable = BatchIterable(data)
        return iterable, iterable.describe()
    kind = f"the class {data.__name__} itself" if isinstance(data, type) else f"a {type(data).__name__}"
    raise ArgumentError(
        f"{role} is {kind}, which cannot be iterated. Give a DataLoader, a Dataset, tensors with batch_size=, or an iterable of batches."
    )


def needs_batch_size(data: Any) -> bool:
    """Return whether the data are a dataset or tensors, which have no batches of their own."""
    return not isinstance(data, (DataLoader, BatchIterable, TorchDataLoader)) and (
        columns_from(data) is not None or isinstance(data, Dataset)
    )


def _is_map_style(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, TorchDataLoader)


def _refuse_nested_tensors(data: Any, role: str) -> None:
    """Refuse ({"a": a, "b": b}, y): neither samples nor batches are meant, but tensors with all samples, which are read flat."""
    if type(data) is tuple and len({isinstance(part, (dict, tuple, list)) for part in data}) == 2:
        kinds = ", ".join(type(part).__name__ for part in data)
        raise ArgumentError(
            f"{role} is a tuple of {kinds}, one inside of the other. Tensors with all samples are given flat: as a tuple (a, b, target) "
            f'or a dict {{"a": a, "b": b, "target": target}}. Batches of any nesting come from a Dataset.'
        )


def _refuse_batch_size(batch_size: int | None, data: Any, role: str) -> None:
    if batch_size is not None:
        raise ArgumentError(
            f"batch_size={batch_size} was given, but {role} is a {type(data).__name__}, which makes its own batches. Leave batch_size out."
        )


def _rebuild(loader: TorchDataLoader[Any]) -> tuple[DataLoader | BatchIterable, str]:
    """Rebuild a map-style PyTorch loader as one whose order is f(seed, epoch); use every other one as it is."""
    # A batch sampler that the user gave leaves batch_size at None; PyTorch's own one does not.
    known_batches = loader.batch_sampler is None or (
        type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None
    )
    if type(loader) is not TorchDataLoader or isinstance(loader.dataset, IterableDataset):
        iterable = BatchIterable(loader)
        return iterable, iterable.describe()
    sampler: Any = loader.sampler
    is_whole = _covers(sampler, loader.dataset)
    shuffle = type(sampler) is RandomSampler and not sampler.replacement and is_whole
    arguments: dict[str, Any] = {}
    if not known_batches:
        arguments["batch_sampler"] = loader.batch_sampler
    elif not shuffle and not (type(sampler) is SequentialSampler and is_whole):
        arguments["sampler"] = sampler
    if loader.collate_fn is not (default_convert if loader.batch_sampler is None else default_collate):
        arguments["collate_fn"] = loader.collate_fn
    if arguments.keys() & {"sampler", "batch_sampler"}:
        # PyTorch draws the workers' seed from it first, and a sampler may share it.
        arguments["generator"] = loader.generator
    if not loader.in_order:
        arguments["in_order"] = False
    if loader.num_workers:
        arguments.update(
            num_workers=loader.num_workers, prefetch_factor=loader.prefetch_factor, persistent_workers=loader.persistent_workers,
            worker_init_fn=loader.worker_init_fn, multiprocessing_context=loader.multiprocessing_context,
        )  # fmt: skip
        if loader.timeout:
            arguments["timeout"] = loader.timeout
    rebuilt = DataLoader(
        loader.dataset,
        loader.batch_size if known_batches else 1,
        shuffle=shuffle and known_batches,
        drop_last=bool(loader.drop_last),
        pin_memory=loader.pin_memory and torch.accelerator.is_available(),
        **arguments,
    )
    if loader.generator is None:
        rebuilt.replay_torch_draw(once=loader.num_workers > 0 and loader.persistent_workers)
    rebuilt.origin = "PyTorch's DataLoader, rebuilt as velodrome.DataLoader"
    return rebuilt, rebuilt.describe()


def _covers(sampler: Any, dataset: Any) -> bool:
    """Return whether the sampler, one of PyTorch's own two, goes once over the whole dataset and not over something else."""
    if type(sampler) is RandomSampler and sampler._num_samples is not None:
        return False
    try:
        return len(sampler) == len(dataset)
    except TypeError:
        return False
