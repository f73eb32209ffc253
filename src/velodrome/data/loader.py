"""`velodrome.DataLoader`: PyTorch's loader with an order that is a function of (seed, epoch), and in-memory data gathered by batch."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate

from velodrome.data.arguments import check_combination, check_names
from velodrome.data.choosing import WorkerChoice
from velodrome.data.columns import Columns, columns_from
from velodrome.data.order import epoch_order
from velodrome.data.own_order import check_own_order
from velodrome.data.position import LoaderPosition
from velodrome.data.recognise import recognise, watch
from velodrome.data.sample_path import SamplePath
from velodrome.data.share import EMPTY, WHOLE, Share
from velodrome.data.transforms.applied import Augmentation
from velodrome.data.transforms.base import Compose, Transform
from velodrome.data.transforms.function import BatchTransform
from velodrome.errors import ArgumentError, DataError
from velodrome.seeding import check_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal

__all__ = ["DataLoader"]


class DataLoader:
    """Batches of a dataset or of tensors: PyTorch's `DataLoader` arguments, exact order, in-memory speed.

    Tensors, arrays, `TensorDataset` and recognised image sets are gathered by batch (on the device, when they fit); every
    other dataset goes through PyTorch's own loader, worker processes included. Either way the order of an epoch is
    f(seed, epoch), so neither workers nor an interruption can change it.

    Args:
        dataset: a map-style or iterable dataset, a tensor or array, or a tuple or dict of them with equal first dimensions.
        batch_size: samples a batch; None hands the dataset's own items through.
        shuffle: draw a new order every epoch.
        drop_last: leave out the last batch when it is short; off by default, so that every sample counts.
        num_workers: processes that fetch samples; not used for data in memory. "auto" measures the first batches and takes as many as
            pay, or none; see `choosing`.
        transform: applied to each batch's input (a tuple's first element; the whole batch otherwise) after it was gathered: one of
            `velodrome.transforms`, whose random numbers belong to the samples, or any function, whose random numbers belong to the batch.
        resident: keep data in memory on the GPU of the trainer that runs the loader: "auto" does where they take less than 40% of its free memory,
            True refuses where they do not, False moves every batch.
        seed: of the order; without one it is the seed of the trainer that runs the loader, or PyTorch's initial seed.
        timeout: seconds to wait for a batch of the workers before their stacks are shown and they are ended: ten minutes where it is
            left out, 0 without an end.
        sampler, batch_sampler, collate_fn, pin_memory, worker_init_fn, multiprocessing_context, generator, prefetch_factor,
            persistent_workers, pin_memory_device, in_order: as in PyTorch. `generator` seeds what a worker draws when it starts.
    Raises:
        ArgumentError: arguments that exclude one another or are out of range.
        DataError: no samples, tensors of different lengths, or `drop_last` with fewer samples than a batch.
    Source: torch.utils.data.DataLoader, https://docs.pytorch.org/docs/stable/data.html
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        shuffle: bool | None = False,
        drop_last: bool = False,
        num_workers: int | Literal["auto"] = 0,
        transform: Callable[[Any], Any] | Transform | None = None,
        resident: bool | Literal["auto"] = "auto",
        seed: int | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[int]] | Iterable[list[int]] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        generator: torch.Generator | None = None,
        **torch_arguments: Any,
    ) -> None:
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise ArgumentError(
                f"batch_size={batch_size!r} is not a batch size. It must be a whole number of at least 1."
            )
        if isinstance(num_workers, str) and num_workers != "auto":
            raise ArgumentError(
                f'num_workers={num_workers!r} is not a number of processes. Give one, 0 for none, or "auto" to have it measured.'
            )
        if num_workers != "auto" and (
            isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0
        ):
            raise ArgumentError(
                f"num_workers={num_workers!r} is not a number of processes. It must be a whole number, 0 for none; also where data in memory "
                f"need none."
            )
        if not isinstance(resident, bool) and resident != "auto":
            raise ArgumentError(f'resident={resident!r} is not known. It must be True, False or "auto".')
        check_names(torch_arguments, own=DataLoader.__init__.__kwdefaults__ or {})
        if seed is not None:
            check_seed(seed)
        check_combination(
            dataset, batch_size, shuffle=shuffle, drop_last=drop_last, sampler=sampler, batch_sampler=batch_sampler
        )
        if isinstance(transform, Transform) and batch_size is None:
            raise ArgumentError(
                f"{type(transform).__name__} changes batches, and batch_size=None hands out the dataset's items. Give a batch_size, or a function "
                f"of an item as transform."
            )
        if batch_sampler is not None:
            batch_size = None
        if collate_fn is default_collate:
            collate_fn = None
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = bool(shuffle)
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.transform = transform
        self.resident = resident
        self.seed = seed
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.origin = ""
        """what the loader was made from, for `describe`"""
        self._position = LoaderPosition()
        self._torch_draws_left: float = 0

        self._is_plain = sampler is None and batch_sampler is None and collate_fn is None and batch_size is not None
        self._make_sample_path = partial(
            SamplePath, batch_size=batch_size, sampler=sampler, batch_sampler=batch_sampler, drop_last=drop_last,
            num_workers=0 if num_workers == "auto" else num_workers, collate_fn=collate_fn, generator=generator, **torch_arguments,
        )  # fmt: skip
        self._choice: WorkerChoice | None = None
        self.say: Callable[[str], None] = _say_nothing
        """is told what was measured to choose the workers; a trainer shows it"""
        self._columns: Columns | None = None
        self._own_samples: SamplePath | None = None
        self._watched: list[tuple[Any, int]] = []
        self._read_dataset()

    def _read_dataset(self) -> None:
        """Decide how the samples are read: as columns, or one by one."""
        dataset, how, columns = self.dataset, "sample by sample", columns_from(self.dataset)
        if columns is not None and self._is_plain:
            how = "in memory"
        elif columns is not None:
            dataset, columns = columns, None
        elif not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
            how = f"sample by sample ({type(dataset).__name__})"
        elif self._is_plain:
            self._watched = watch(dataset)
            columns, how = recognise(dataset)
        self._how = how
        if isinstance(self.transform, Transform) and columns is not None and isinstance(columns.tensors, dict):
            raise ArgumentError(
                f"{type(self.transform).__name__} changes a tensor, or the first part of a tuple, and the data are a dict of "
                f"{', '.join(columns.tensors)}. Give (inputs, targets), or a function of the whole dict as transform."
            )
        if columns is None:
            self._columns, self._own_samples, self._choice = None, *self._make_samples(dataset)
        else:
            self._columns, self._own_samples, self._choice = columns, None, None
        self._check_size()

    def _make_samples(self, dataset: Any) -> tuple[SamplePath | None, WorkerChoice | None]:
        if self.num_workers != "auto":
            return self._make_sample_path(dataset), None
        # Each worker of an iterable dataset reads a part of its own: their number would decide the order.
        without = partial(self._make_sample_path, dataset, **_WITHOUT_WORKERS)
        if isinstance(dataset, IterableDataset):
            return without(), None
        return None, WorkerChoice(without, partial(self._make_sample_path, dataset, persistent_workers=True))

    @property
    def _samples(self) -> SamplePath | None:
        """The way of samples that are read one by one; None where the data lie in memory."""
        return self._own_samples if self._choice is None else self._choice.current

    @property
    def num_workers_in_use(self) -> int:
        """How many processes fetch samples now."""
        return 0 if self._samples is None else self._samples.num_workers

    @property
    def workers_failed(self) -> str:
        """What those that "auto" tried failed at: "start" or "run"; nothing where none failed."""
        return "" if self._choice is None else self._choice.failure

    def _read_again_if_changed(self) -> None:
        """See to it that what was changed in the dataset after the columns were made from it is seen, as PyTorch's loader would."""
        if self._watched:
            now = watch(self.dataset)
            if len(now) != len(self._watched) or any(
                a is not b or version != before for (a, version), (b, before) in zip(now, self._watched, strict=True)
            ):
                self._read_dataset()

    def _check_size(self) -> None:
        total = self.num_samples
        if total == 0:
            raise DataError(
                "The dataset has 0 samples. Training needs at least one: check its path, split and filters.",
                num_samples=0,
            )
        size = self.batch_size
        if self.drop_last and total is not None and size is not None and self.batch_sampler is None and total < size:
            raise DataError(
                f"drop_last leaves no batch: the dataset has {total} sample{'s' * (total != 1)}, fewer than batch_size={size}. "
                f"Use a batch_size of at most {total}, or drop_last=False.",
                num_samples=total,
                batch_size=size,
            )

    @property
    def num_samples(self) -> int | None:
        """How many samples an epoch has before `drop_last`; None when the dataset does not say."""
        if self._columns is not None:
            return self._columns.num_samples
        assert self._samples is not None
        return self._samples.num_samples

    @property
    def is_dealt(self) -> bool:
        """Whether several processes share the batches out among themselves: what an iterable dataset gives, and items without batches."""
        is_itemwise = self.batch_size is None and self.batch_sampler is None
        return is_itemwise or isinstance(self.dataset, IterableDataset)

    @property
    def columns(self) -> Columns | None:
        """The whole data when they lie in memory, for checks that look at all of them at once."""
        self._read_again_if_changed()
        return self._columns

    def describe(self, *, device: torch.device | None = None) -> str:
        """Say in one line how the data are read; data in memory from this device, when it is another than their own."""
        total = f"{self.num_samples:,} samples" if self.num_samples is not None else "samples of unknown number"
        order = (
            "shuffled"
            if self.shuffle
            else "in their own order"
            if self.sampler is None and self.batch_sampler is None
            else "in the sampler's order"
        )
        workers = f", {self.num_workers} workers" if self.num_workers and self._samples is not None else ""
        if self.num_workers == "auto" and self._samples is not None:
            workers = ", without workers, whose number would decide the order"
            if self._choice is not None:
                workers = f", {self._choice.line}" if self._choice.is_made else ", workers as measured"
        if device is None and self._columns is not None:
            device = self._columns.device
        place = "" if device is None or device.type == "cpu" else f", on {device}"
        batches = f"batches of {self.batch_size}"
        if self.batch_size is None:
            batches = "one by one" if self.batch_sampler is None else "batches of the sampler's sizes"
        origin = f" ({self.origin})" if self.origin else ""
        return f"{total}, {self._how}{place}, {batches}, {order}{workers}{origin}"

    def in_own_order(self) -> DataLoader:
        """Return a loader whose batches are all samples in the order of the data: itself, or a copy without shuffle and drop_last.

        Raises:
            ArgumentError: a sampler decides the order, or an iterable dataset is read with drop_last.
        """
        check_own_order(self)
        if not self.shuffle and not self.drop_last:
            return self
        other = copy.copy(self)
        other._position = copy.copy(self._position)
        other.shuffle = other.drop_last = False
        other._make_sample_path = partial(self._make_sample_path, drop_last=False)
        if other._samples is not None:
            other._read_dataset()
        return other

    def replay_torch_draw(self, *, once: bool = False) -> None:
        """Draw one number from the global generator at the start of every epoch, as PyTorch's loader does.

        Dropout after a PyTorch loader then sees the same stream as in a loop that iterates over that loader itself.

        Args:
            once: draw for the first epoch only, as PyTorch does when its workers persist.
        """
        self._torch_draws_left = 1 if once else math.inf

    def skip_single_torch_draw(self) -> None:
        """Leave out what is drawn once, for the first epoch: a run that goes on in another process drew it in the one before."""
        if self._torch_draws_left == 1:
            self._torch_draws_left = 0

    def set_epoch(self, epoch: int, *, seed: int | None = None) -> None:
        """Make the next `iter()` give the order of this epoch, counted from 0.

        Args:
            epoch: starts at its first sample.
            seed: of the trainer that runs it, for a loader without one of its own.
        """
        if seed is not None:
            self._position.bound_seed = seed
        self._position.enter_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, how many of its samples were handed out, and what an iterable dataset says of it itself."""
        state = {
            "epoch": self._position.epoch,
            "samples_done": self._position.samples_done,
            "seed": self._order_seed(),
            "num_samples": self.num_samples,
        }
        if self._samples is not None and self._position.samples_done:
            own = {"dataset": self._samples.own_state(), "stream": self._samples.stream_state()}
            state.update({name: each for name, each in own.items() if each is not None})
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` go on where `state_dict` was taken; nothing that was skipped is read.

        An iterable dataset cannot be entered in the middle, unless it has a `state_dict` of its own and no workers have copies
        of it: otherwise it is read up to the position.

        The batch size may be another one: no sample comes twice, and none is left out. A batch of a `batch_sampler` that the position
        falls into is cut.

        Raises:
            DataError: the state belongs to a dataset of another size, or to an order of another seed; or to an iterable dataset that
                another number of workers read.
            ArgumentError: it is not the state of a `velodrome.DataLoader`.
        """
        self._position.load(state, num_samples=self.num_samples, seed=self.seed)
        if self._samples is not None:
            self._samples.enter_stream(state.get("stream"), self._position.samples_done)
            if "dataset" in state:
                self._samples.enter_dataset(state["dataset"])

    @property
    def has_own_order(self) -> bool:
        """Whether a sampler decides the order, which may draw from any generator."""
        return self._samples is not None and self._samples.has_own_order

    @property
    def is_seeded(self) -> bool:
        """Whether what the dataset draws from the global generators is a function of seed, epoch and sample."""
        return self._samples is None or self._samples.is_seeded

    def lay_out_ahead(self, share: Share = WHOLE) -> None:
        """After `iter()` and `load_state_dict`: have a sampler hand out what is skipped now, not with the first batch."""
        if self._samples is not None:
            place = self._position
            self._samples.enter(place.samples_done, place.epoch, seed=self._order_seed(), share=share)

    def batches_left(self) -> int | None:
        """Return how many batches come after a position that was loaded; None where nothing else is known than `len` says.

        Those of a `batch_sampler` are known once they are laid out.
        """
        done = self._position.samples_done
        if self._samples is not None:
            return self._samples.batches_left(done)
        left, size = (self.num_samples or 0) - done, self.batch_size or 1
        return left // size if self.drop_last else -(-left // size)

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        if self._samples is not None:
            return len(self._samples)
        assert self.batch_size is not None
        total = self.num_samples or 0
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()

    def iterate(
        self, *, seed: int | None = None, columns: Columns | None = None, share: Share = WHOLE
    ) -> Iterator[Any]:
        """Return what `iter()` does, for a trainer: in the order of its seed, from a copy of the columns on its device.

        Args:
            seed, columns: of the trainer.
            share: the slice of each batch that is wanted; the position goes on counting all samples. `EMPTY` where it has none.
        """
        self._read_again_if_changed()
        if self._choice is not None:
            self._choice.begin_epoch()
        if seed is not None:
            self._position.bound_seed = seed
        iteration = self._position.begin()
        epoch, start = self._position.epoch, self._position.samples_done
        if self._torch_draws_left:
            self._torch_draws_left -= 1
            torch.empty((), dtype=torch.int64).random_()
        columns, order_seed = self._columns if columns is None else columns, self._order_seed()
        transform = change = None
        steps = [None if columns is None else columns.transform, self.transform]
        steps = [step for step in steps if isinstance(step, Transform)]
        if steps:
            step = steps[0] if len(steps) == 1 else Compose(steps)
            augmentation = Augmentation(step, seed=order_seed, epoch=epoch)
            change = augmentation.of_rows
            if columns is None:
                transform = partial(self._augment, augmentation, share)
        if self.transform is not None and not isinstance(self.transform, Transform):
            transform = BatchTransform(
                self.transform,
                seed=order_seed,
                epoch=epoch,
                device=None if columns is None else columns.device,
                indices=partial(self._indices_of, order_seed, epoch, share),
            )
        batches = self._sized_batches(columns, epoch, start, order_seed, share, change)
        return self._iterate(batches, iteration, epoch, start, transform)

    def _indices_of(self, seed: int, epoch: int, share: Share, position: int, size: int) -> Sequence[Any] | None:
        """Return the indices of this process's part of a batch, where they are known."""
        if self._samples is not None:
            return self._samples.last_indices
        order = epoch_order(self.num_samples or 0, seed=seed, epoch=epoch, shuffle=self.shuffle)
        return order[position : position + size][
            slice(*share.of(size))
        ].tolist()  # SYNC: on the CPU; the run has failed

    def _augment(self, augmentation: Augmentation, share: Share, batch: Any, position: int, size: int) -> Any:
        """Change a batch that was read sample by sample."""
        assert self._samples is not None
        if isinstance(self.dataset, IterableDataset):  # its items have no index but their number
            return augmentation.of_batch(batch, position=position + share.rank * (self.batch_size or 0), indices=None)
        begin = position + share.of(size)[0]
        return augmentation.of_batch(
            batch, position=begin, indices=self._samples.last_indices, by_position=self.has_own_order
        )

    def _iterate(
        self,
        batches: Iterable[tuple[int, Any]],
        iteration: int,
        epoch: int,
        start: int,
        transform: Callable[[Any, int, int], Any] | None,
    ) -> Iterator[Any]:
        done = start
        for size, batch in batches:
            done += size
            self._position.advance(iteration, done)
            yield batch if transform is None or batch is EMPTY else transform(batch, done - size, size)
        self._position.end(iteration, epoch)

    def _sized_batches(
        self,
        columns: Columns | None,
        epoch: int,
        start: int,
        seed: int,
        share: Share,
        change: Callable[[Sequence[torch.Tensor], torch.Tensor, int], Sequence[torch.Tensor]] | None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number of samples, batch) from sample `start` of the epoch on; with a share, its part of the batch."""
        if columns is None:
            assert self._samples is not None
            what: dict[str, Any] = {
                "seed": seed,
                "epoch": epoch,
                "shuffle": self.shuffle,
                "start": start,
                "share": share,
            }
            if self._choice is None or self._choice.is_made:
                yield from self._samples.batches(**what)
            else:
                yield from self._choice.batches(say=self.say, **what)
            return
        size = self.batch_size
        assert size is not None
        order = epoch_order(columns.num_samples, seed=seed, epoch=epoch, shuffle=self.shuffle)
        skip = start // size
        if start % size:  # made with another batch size
            order, start, skip = order[start:], 0, 0
        if self.drop_last:
            order = order[: len(order) - len(order) % size]
        left = len(order) - start
        if share.size == 1:
            for batch in columns.batches(order.to(columns.device), size, skip=skip, change=change):
                yield min(size, left), batch
                left -= size
            return
        own, own_size = share.of_batches(order, size)
        skip = skip if own_size else 0
        batches = columns.batches(own.to(columns.device), max(1, own_size), skip=skip, change=change)
        while left > 0:
            begin, end = share.of(min(size, left))
            yield min(size, left), next(batches) if end > begin else EMPTY
            left -= size

    def _order_seed(self) -> int:
        for seed in (self.seed, self._position.loaded_seed, self._position.bound_seed):
            if seed is not None:
                return seed
        return torch.initial_seed()


# What PyTorch's loader refuses where there are no workers.
_WITHOUT_WORKERS: dict[str, Any] = {
    "num_workers": 0,
    "prefetch_factor": None,
    "persistent_workers": False,
    "multiprocessing_context": None,
}


def _say_nothing(line: str) -> None:
    """Show nothing: a loader of its own has nobody to tell."""
