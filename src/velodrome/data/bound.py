"""A loader as one trainer runs it: in the order of the trainer's seed, with data in memory on the trainer's device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from velodrome.data.fingerprint import fingerprint
from velodrome.data.order import epoch_order
from velodrome.data.origin import origin_of_loader
from velodrome.data.share import WHOLE, Share, describe_sharded, is_sharded
from velodrome.data.source import Source
from velodrome.data.transforms.base import Transform
from velodrome.errors import DataError
from velodrome.free_memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from velodrome.data.columns import Columns
    from velodrome.data.loader import DataLoader

__all__ = ["BoundLoader"]

# Leave room for the model and its activations when data are put on an accelerator.
_RESIDENT_FRACTION = 0.4


class BoundLoader(Source):
    """A trainer's view of a loader that it may share with other trainers.

    The seed and the place of the data belong to the view: whichever trainer begins an epoch decides its order. The position
    is the loader's own, as `DataLoader.state_dict` tells it, and is that of the epoch begun last.

    Args:
        loader: is not changed but for its position.
        seed: of the order, when the loader has none of its own.
        device: where data in memory are put, when they fit; the copy goes when the view goes.
        rank, size: of this process among those that train together; each gets its slice of every batch.
    """

    def __init__(self, loader: DataLoader, *, seed: int, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.loader = loader
        self._is_sharded = size > 1 and is_sharded(loader)
        self._share = WHOLE if self._is_sharded else Share(rank, size)
        self._seed = seed
        self._device = device
        self._read: Columns | None = None
        self._placed: Columns | None = None
        self._printed: Columns | None = None
        self._fingerprint = ""
        self._note = ""
        self._length: int | None = None
        """of the epoch under way, where it was entered in the middle"""

    @property
    def columns(self) -> Columns | None:
        """The whole data when they lie in memory, on the device when they fit there."""
        read = self.loader.columns
        if read is not self._read:
            placed, note = (None, "") if read is None else _place(read, self._device, self.loader.resident)
            self._read, self._placed, self._note = read, placed, note
        return self._placed

    @property
    def gives_placed_batches(self) -> bool:
        """Whether batches are on the device as they come; what a function given as `transform` returns is not known to be."""
        columns, transform = self.columns, self.loader.transform
        is_known = transform is None or isinstance(transform, Transform)
        return columns is not None and columns.device == self._device and is_known

    def describe(self) -> str:
        """Say in one line how the data are read."""
        columns = self.columns
        line = self.loader.describe(device=None if columns is None else columns.device) + self._note
        if self._is_sharded:
            return f"{line}, {describe_sharded(self.loader)}"
        if self._share.size == 1:
            return line
        how = "dealt out batch by batch" if self.loader.is_dealt else "each batch divided"
        return f"{line}, {how} among {self._share.size} processes"

    def in_own_order(self) -> BoundLoader:
        """Return a view whose batches are all samples in the order of the data, in every process.

        Raises:
            ArgumentError: see `DataLoader.in_own_order`.
        """
        loader = self.loader.in_own_order()
        if loader is self.loader:
            return self.whole()
        view = BoundLoader(loader, seed=self._seed, device=self._device)
        view._read, view._placed, view._note = self._read, self._placed, self._note
        return view

    def whole(self) -> BoundLoader:
        """Return a view of all samples in the same order, for every process; itself where there is one process."""
        if self._share.size == 1:
            return self
        view = BoundLoader(self.loader, seed=self._seed, device=self._device)
        view._read, view._placed, view._note = self._read, self._placed, self._note
        return view

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` give the order of this epoch, counted from 0."""
        self._length = None
        self.loader.set_epoch(epoch, seed=self._seed)

    @property
    def draws_at_start(self) -> bool:
        """Whether beginning an epoch may draw from the global generators what decides its order."""
        return self.loader.has_own_order

    def go_to(self, epoch: int, state: Mapping[str, Any] | None, batches_done: int) -> int:
        """Make the next `iter()` go on inside an epoch; nothing that was skipped is read, of a map-style dataset.

        Args:
            epoch: counted from 0.
            state: what `DataLoader.state_dict` gave.
            batches_done: by the batch size of then.
        Returns:
            The batches done, by the batch size of now.
        Raises:
            DataError: the state belongs to other data, or to an order of another seed.
        """
        if state is None:
            raise DataError(
                "The checkpoint does not say where in its data it was made: the same loader was iterated over elsewhere meanwhile. "
                "Give training and evaluation loaders of their own, and go on from an earlier checkpoint."
            )
        self.set_epoch(epoch)
        self.loader.load_state_dict(dict(state))
        size, total, left = self.loader.batch_size, self.loader.num_samples, self.loader.batches_left()
        if size is not None and total is not None and not self.loader.has_own_order:
            assert left is not None
            batches_done = max(1, len(self) - left)
        self._count_batches(batches_done)
        return batches_done

    def skip(self, iterator: Iterator[Any], batches: int) -> None:
        """Have what comes before the position laid out; nothing is read, and the samples are as many as were done."""
        del iterator
        self.loader.lay_out_ahead(self._share)
        self._count_batches(batches)

    def _count_batches(self, batches_done: int) -> None:
        """Note how many batches the epoch has, those of another size that were done before included."""
        left = self.loader.batches_left()
        if left is not None:
            self._length = batches_done + (-(-left // self._share.size) if self.loader.is_dealt else left)

    def position(self, epoch: int) -> dict[str, Any] | None:
        """Return the loader's position, in samples; None where somebody else has iterated over it meanwhile."""
        state: dict[str, Any] = dict(self.loader.state_dict())
        return state if state["epoch"] == epoch else None

    @property
    def divides_itself(self) -> bool:
        """Whether the data give each process its part by themselves."""
        return is_sharded(self.loader)

    @property
    def is_dealt(self) -> bool:
        """Whether several processes take whole batches in turn."""
        return self.loader.is_dealt

    @property
    def has_own_order(self) -> bool:
        """Whether a sampler, or a stream, decides the order."""
        return self.loader.has_own_order

    @property
    def draws_in_workers(self) -> bool:
        """Whether worker processes draw numbers that are not a function of seed, epoch and sample."""
        return self.loader.num_workers_in_use > 0 and not self.loader.is_seeded

    @property
    def num_workers_in_use(self) -> int:
        """How many processes fetch samples while the loop computes."""
        return self.loader.num_workers_in_use

    def use_seed(self, seed: int) -> None:
        """Take another seed for the order: that of the run that goes on here."""
        self._seed = seed

    def origin(self) -> tuple[str, dict[str, Any]]:
        """Return the class of the dataset, and how it is read now."""
        return origin_of_loader(self.loader, in_memory=self.columns is not None)

    def describe_data(self) -> dict[str, Any]:
        """Return what must be the same when a run goes on: how many samples, in which batches and order, and what is in memory."""
        loader = self.loader
        facts = {"samples": loader.num_samples, "batch size": loader.batch_size, "shuffle": loader.shuffle}
        if loader.num_workers_in_use and isinstance(loader.dataset, IterableDataset):
            facts["workers"] = loader.num_workers_in_use  # each reads a part of its own, so they decide the order
        columns = loader.columns
        if columns is None:
            return facts
        if columns is not self._printed:
            self._printed, self._fingerprint = columns, fingerprint(columns)
        return {**facts, "content": self._fingerprint}

    @property
    def shared_facts(self) -> dict[str, Any] | None:
        """What must be the same in all processes; None where each has data of its own."""
        return None if self._is_sharded else self.describe_data()

    def indices_of_batch(self, num_samples: int) -> list[int]:
        """Return the samples of the batch that was handed out last, as indices into the data; none where the order is not ours."""
        loader, state = self.loader, self.loader.state_dict()
        total, done, seed = loader.num_samples, state["samples_done"], state["seed"]
        if total is None or not done or seed is None or loader.has_own_order or self._share.size > 1:
            return []
        order = epoch_order(total, seed=seed, epoch=int(state["epoch"] or 0), shuffle=loader.shuffle)
        return order[max(0, done - num_samples) : done].tolist()  # SYNC: on the CPU

    def __len__(self) -> int:
        if self._length is not None:
            return self._length
        total = len(self.loader)
        return -(-total // self._share.size) if self.loader.is_dealt else total  # the last round may be short

    def __iter__(self) -> Iterator[Any]:
        return self.loader.iterate(seed=self._seed, columns=self.columns, share=self._share)


def _place(columns: Columns, device: torch.device, resident: bool | str) -> tuple[Columns, str]:
    """Return the columns on the device, or as they are when they take too much of its free memory; and a note that says why.

    Raises:
        DataError: they must be there and do not fit.
    """
    if columns.device == device or device.type == "cpu":
        return columns if columns.device == device else columns.to(device), ""
    if resident is False:
        return columns, f", moved to {device} batch by batch"
    free = available_bytes(device)
    fits = columns.nbytes < _RESIDENT_FRACTION * free
    numbers = f"{columns.nbytes / 2**20:,.1f} MiB of the {free / 2**20:,.1f} MiB that are free there"
    if fits:
        return columns.to(device), f", resident ({numbers})"
    if resident is True:
        raise DataError(
            f"The data cannot be resident on {device}: they would take {numbers}, and at most {_RESIDENT_FRACTION:.0%} are given to data, for the "
            f"model and its activations need the rest. Leave resident=True out: they are moved batch by batch then.",
            nbytes=columns.nbytes,
            free=free,
        )
    return (
        columns,
        f", moved to {device} batch by batch ({numbers}, of which at most {_RESIDENT_FRACTION:.0%} are given to data)",
    )
