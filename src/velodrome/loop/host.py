"""What the loop asks of the trainer that drives it, and its epochs of the run under way: the loop imports no other part, the trainer hands them in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from velodrome.loop.epochs import Epoch
    from velodrome.loop.progress import Budget, Progress, StopReason
    from velodrome.loop.result import FitResult

__all__ = [
    "NO_BATCH",
    "BatchSource",
    "Display",
    "FitHost",
    "LeftAtOnce",
    "LoopHost",
    "OutcomeLike",
    "PhaseLike",
    "length_of",
]


T = TypeVar("T")
NO_BATCH = -1
"""the number of samples where a process has no part of a batch, which is not the same as a batch of no samples"""


class LeftAtOnce(BaseException):
    """A loop ends where it is, and nothing of it is brought to its end; never reaches the user."""


class OutcomeLike(Protocol):
    """What one forward pass gave."""

    loss: Tensor
    output: Any
    target: Any
    items: Tensor | float | None
    """what the loss is a mean over; None is the batch's samples"""


class FitHost(Protocol):
    """The public methods of a trainer that `fit` is written with."""

    def epochs(
        self, epochs: int | None = None, *, steps: int | None = None, seconds: float | None = None
    ) -> Iterator[Epoch]:
        """Yield epochs until a budget is used up."""
        ...

    def forward(self, batch: Any) -> OutcomeLike:
        """Run the model and the loss on a batch."""
        ...

    def step(self, loss: Tensor, *, items: Tensor | float | None = None) -> None:
        """Backpropagate and update."""
        ...

    def measure(self, outcome: Any) -> None:
        """Feed the metrics."""
        ...

    @property
    def result(self) -> FitResult:
        """What has come out so far."""
        ...


class BatchSource(Protocol):
    """Data, ready to be iterated over once an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Display(Protocol):
    """Whatever shows people how far the run is."""

    def advance(self, batches_done: int, samples_done: int) -> None:
        """Show how far the phase is; called at most ten times a second."""
        ...


class Others(Protocol):
    """The processes of a phase."""

    def gather(self, value: T) -> list[T]:
        """Return the value of each of them, by rank."""
        ...


class PhaseLike(Protocol):
    """The training batches of an epoch or the batches of one evaluation, while they go by and afterwards."""

    name: str
    batch_samples: int
    batches_done: int
    is_whole: bool
    """whether the data came to their end, as far as this process is concerned"""
    told: list[tuple[int, bool]]
    """batches_done and is_whole of every process, when it is over"""
    values: dict[str, float]
    """loss and metrics, when it is over"""

    @property
    def display(self) -> Display:
        """What is told how far it is."""
        ...

    @property
    def others(self) -> Others:
        """The processes whose batches belong to it too."""
        ...


class PositionLike(Protocol):
    """Where in the epoch a run is."""

    is_in_batch: bool
    """the body of a training loop is under way"""
    is_whole: bool
    """the epoch's training loops that are over came to the end of their data"""
    batch: Any
    """of the training loop under way"""


class LoopHost(Protocol):
    """What epochs ask of the run under way."""

    model: nn.Module
    progress: Progress
    stop_requested: StopReason | None

    @property
    def position(self) -> PositionLike:
        """Where in the epoch the run is."""
        ...

    @property
    def save_is_due(self) -> bool:
        """Whether something is to be done about checkpoints as soon as the batch is over."""
        ...

    def save_if_due(self) -> None:
        """Write the checkpoint that waited for the end of the batch; learn what came of one that was written meanwhile."""
        ...

    @property
    def leaving(self) -> object | None:
        """Not None: the run is to be left at once, by a call of `leave`."""
        ...

    @property
    def wants_to_leave(self) -> object | None:
        """What this process was told, which the others may not know yet; None if nothing."""
        ...

    def heed_time(self, now: float) -> None:
        """Look at the clock, for a deadline; called at most ten times a second."""
        ...

    def heed_others(self, wishes: list[Any]) -> None:
        """Take what each process was told, by rank: they leave together."""
        ...

    def leave(self) -> StopReason:
        """Save where the run is, once, and raise what the process is expected to end with, or return the reason."""
        ...

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the run goes on in the middle of an epoch, with the one that `begin_epoch` begins next."""
        ...

    def enter_data(self, source: Any, epoch: int) -> int | None:
        """Choose the order of the epoch and where in it to begin.

        Returns:
            The batches that were done before the run was interrupted, usually 0; None when this loop was over by then.
        """
        ...

    def batches(self, source: Any) -> Iterator[Any]:
        """Return the iterator over the batches that are left."""
        ...

    def pass_over_data(self) -> None:
        """The batches that are left are not read: the run had all of its steps when it was interrupted."""
        ...

    def watched(self, batches: Iterable[Any], place: Callable[[Any], tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
        """Return the batches as `place` makes them; some of them are timed."""
        ...

    @property
    def phase(self) -> PhaseLike:
        """The phase under way."""
        ...

    def tick(self) -> None:
        """Bring the clock of the progress up to date."""
        ...

    def warn(self, line: str) -> None:
        """Show a line that must be seen, once a run."""
        ...

    @property
    def is_alone(self) -> bool:
        """Whether no other process trains together with this one."""
        ...

    def note(self, error: BaseException) -> None:
        """Remember an error that leaves the loop, for the records."""
        ...

    def begin_run(self, budget: Budget) -> Budget:
        """Check everything that can be checked and open the records; return the limits that the loop itself looks after."""
        ...

    def begin_epoch(self) -> None:
        """Start new sums."""
        ...

    def end_epoch(self) -> None:
        """Write the row of the epoch, save, and tell the callbacks."""
        ...

    def end_run(self, reason: StopReason) -> None:
        """Close the records; called exactly once a run, also when an error passes through."""
        ...

    def source(self, data: Any, *, role: str, batch_size: int | None = None, shuffle: bool = False) -> BatchSource:
        """Turn what the user gave into a source of batches; the same object gives the same source."""
        ...

    def placer(self, source: Any) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples: `NO_BATCH` where this process has none."""
        ...

    def skip_batch(self) -> None:
        """Other processes have a training batch where this one has none: take part in its update."""
        ...

    def finish_left_phase(self) -> None:
        """Finish a phase whose loop was left by `break`; comes before anything that processes do together."""
        ...

    def training(self, source: Any) -> AbstractContextManager[PhaseLike]:
        """Collect what is logged and measured inside as the training phase."""
        ...

    def claim_name(self, name: str) -> bool:
        """Take a name for the values of an evaluation; return whether it is made within the training loop.

        Raises:
            ArgumentError: the name is taken.
        """
        ...

    def evaluation(self, name: str, source: Any) -> AbstractContextManager[PhaseLike]:
        """Collect what is logged and measured inside under this name."""
        ...


def length_of(source: Iterable[Any]) -> int | None:
    """Return the number of batches, or None when the source does not know."""
    try:
        return len(source)  # type: ignore[arg-type]
    except TypeError:
        return None
