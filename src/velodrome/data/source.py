"""Data as a trainer reads them: what the loop, a checkpoint and a bill ask of them, whoever makes the batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from velodrome.data.columns import Columns

__all__ = ["Source"]


class Source(ABC):
    """One epoch of batches after another, each from any position on."""

    @property
    def columns(self) -> Columns | None:
        """The whole data, where they lie in memory."""
        return None

    @property
    def gives_placed_batches(self) -> bool:
        """Whether batches are on the device as they come."""
        return False

    @property
    @abstractmethod
    def num_workers_in_use(self) -> int:
        """How many processes fetch samples while the loop computes."""

    @abstractmethod
    def describe(self) -> str:
        """Say in one line how the data are read."""

    @abstractmethod
    def origin(self) -> tuple[str, dict[str, Any]]:
        """Return the class that the data are of, and how they are read now: see `velodrome.data.origin`."""

    @abstractmethod
    def describe_data(self) -> dict[str, Any]:
        """Return what must be the same when a run goes on."""

    @property
    def shared_facts(self) -> dict[str, Any] | None:
        """What must be the same in all processes; None where each has data of its own, or nobody can tell."""
        return None

    @abstractmethod
    def in_own_order(self) -> Source:
        """Return one whose batches are all samples in the order of the data, in every process.

        Raises:
            ArgumentError: the data shuffle, or leave samples out.
        """

    @abstractmethod
    def whole(self) -> Source:
        """Return one with all samples for every process; itself where it has them."""

    @abstractmethod
    def use_seed(self, seed: int) -> None:
        """Take another seed for the order: that of the run that goes on here."""

    # -- an epoch ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` give the order of this epoch, counted from 0."""

    @abstractmethod
    def go_to(self, epoch: int, state: Mapping[str, Any] | None, batches_done: int) -> int:
        """Make the next `iter()` go on inside an epoch; return the batches done, by the batch size of now.

        Args:
            epoch: counted from 0.
            state: what `position` returned.
            batches_done: by the batch size of then.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[Any]: ...

    @abstractmethod
    def skip(self, iterator: Iterator[Any], batches: int) -> int | None:
        """Pass over what comes before the position; return how many samples that were, None where they need no counting."""

    @abstractmethod
    def position(self, epoch: int) -> dict[str, Any] | None:
        """Return the position in this epoch, as the data tell it; None where only the number of batches does."""

    def indices_of_batch(self, num_samples: int) -> list[int]:
        """Return the samples of the batch that was handed out last, as indices into the data; none where nobody knows."""
        del num_samples
        return []

    # -- what going on in the middle of an epoch depends on ---------------------------------------------------------

    @property
    @abstractmethod
    def divides_itself(self) -> bool:
        """Whether the data give each process its part by themselves."""

    @property
    def is_dealt(self) -> bool:
        """Whether several processes take whole batches in turn, rather than parts of each."""
        return True

    @property
    @abstractmethod
    def has_own_order(self) -> bool:
        """Whether the order is the data's own affair, not that of the trainer's seed."""

    @property
    def can_enter(self) -> bool:
        """Whether the data can be entered at any batch, whoever had done those before it."""
        return True

    @property
    def is_read_once(self) -> bool:
        """Whether a second pass would find nothing."""
        return False

    @property
    def draws_at_start(self) -> bool:
        """Whether beginning an epoch may draw from the global generators what decides its order."""
        return True

    @property
    @abstractmethod
    def draws_in_workers(self) -> bool:
        """Whether worker processes draw numbers that are not a function of seed, epoch and sample."""
