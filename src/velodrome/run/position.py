"""Where in its epoch a run is: what a checkpoint notes, so that a later run goes on at the same sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.data.source import Source

__all__ = ["Position"]

Stage = Literal["between", "open", "over"]


@dataclass
class Position:
    """Kept up to date by the run.

    Fields:
        stage: no epoch is under way; one is; or one is over and recorded, and callbacks are to be told.
        loops_done: training loops of the open epoch that are over. Usually one at most, but an epoch may have several.
        is_whole: the training loops that are over came to the end of their data.
        source: of the training loop under way; None between them.
        batch: that of the training loop under way, on the device: what a number that is not finite came from.
        is_in_batch: the body of that loop is under way. What it will still do with its batch (log, measure, a second optimizer's step)
            nobody knows: a checkpoint that is made here cannot be gone on from, and is made again when the batch is over.
        loop_start: the random state when the training loop under way began, where that decides its order.
        after_training: the random state when the last training loop was over: an evaluation that was cut short is run again whole.
        callbacks: their states before the first `on_evaluate_end` of the epoch, for the same reason; None where none was told.
        epoch_end: the row and the verdict of the epoch that is over.
    """

    stage: Stage = "between"
    loops_done: int = 0
    is_whole: bool = True
    source: Source | None = None
    batch: Any = None
    is_in_batch: bool = False
    loop_start: Mapping[str, Any] | None = None
    after_training: Mapping[str, Any] | None = None
    callbacks: Mapping[str, Any] | None = None
    epoch_end: dict[str, Any] = field(default_factory=dict)

    def open_epoch(self) -> None:
        """An epoch begins."""
        self.stage, self.loops_done, self.source, self.after_training = "open", 0, None, None
        self.is_whole = True
        self.is_in_batch, self.loop_start, self.callbacks = False, None, None

    def enter_loop(self, source: Source) -> None:
        """A training loop begins, or goes on."""
        self.source, self.callbacks = source, None

    def leave_loop(self, random_state: Mapping[str, Any] | None) -> None:
        """A training loop is over, or was left."""
        self.source, self.is_in_batch, self.loop_start, self.after_training = None, False, None, random_state
        self.batch = self.callbacks = None
        self.loops_done += 1

    def end_epoch(self, **facts: Any) -> None:
        """The epoch is recorded; its checkpoint comes next, and then the callbacks."""
        self.stage, self.epoch_end, self.callbacks = "over", facts, None

    def close_epoch(self) -> None:
        """The callbacks know."""
        self.stage, self.epoch_end = "between", {}

    def describe(self) -> dict[str, Any]:
        """Return where in its epoch the run is, as plain values; the same in every process."""
        return {
            "stage": self.stage,
            "loops_done": self.loops_done,
            "is_whole": self.is_whole,
            "epoch_end": self.epoch_end or None,
        }

    def describe_loop(self, *, epoch: int, batches_done: int) -> dict[str, Any] | None:
        """Return how far the training loop under way is, in this process; None between loops.

        Args:
            epoch: the one under way, counted from 0.
            batches_done: of the loop.
        """
        if self.stage != "open" or self.source is None:
            return None
        return {"batches_done": batches_done, "data": self.source.position(epoch)}
