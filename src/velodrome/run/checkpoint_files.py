"""The checkpoints of a run on the disk: which step has one, what is being written, and what a disk that fails means."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import nn

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.checkpoint.saver import Outcome
    from velodrome.loop.progress import Progress
    from velodrome.resume.run_state import SavedState
    from velodrome.step.averaging import NoAveraging

__all__ = ["CheckpointFiles", "check_model"]


class CheckpointFiles:
    """Writes nothing before it is opened.

    Args:
        policy: which checkpoints to keep, and how many failures to bear with.
        say: shows a line to people.
        warn: shows one that must be seen.
    """

    def __init__(self, policy: Checkpointing, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._policy = policy
        self._say = say
        self._warn = warn
        self._saver: Any = None
        self._journal = Path()
        self.saved_step = -1
        """the step of the newest checkpoint that this run wrote or went on from; -1 before there is one"""
        self._begun_step = -1  # saved, or being saved in the background
        self.is_resumable = False
        """whether a run can go on from that checkpoint"""
        self._is_outdated = False
        self.syncs_later = False
        """a save in the background brings the journal to the disk itself"""
        self._lines: deque[str] = deque()  # warnings that come from the background, too
        self._failures_in_a_row = 0
        self._has_said_it_waits = False
        self._sweep: Callable[[], None] = lambda: None
        self.notify: Callable[[], None] = lambda: None
        """called in the background when there is something for `end`"""

    def open(self, run_dir: Path, run_id: str) -> None:
        """Find the folder, and remove what saves that were killed left there."""
        from velodrome.checkpoint.saver import Saver
        from velodrome.checkpoint.store import CheckpointStore

        self._journal = run_dir / "metrics.jsonl"
        store = CheckpointStore(run_dir / "checkpoints", run_id=run_id, warn=self._lines.append)
        store.sweep()
        self._sweep = store.sweep
        self._saver = Saver(
            store, keep_last=self._policy.keep_last, notify=lambda: self.notify(), warn=self._lines.append
        )

    def go_on_from(self, step: int) -> None:
        """This step has a checkpoint already: the run goes on from it, or is looked at."""
        self.saved_step = self._begun_step = step
        self.is_resumable = True

    def can_save(self, progress: Progress, *, is_resumable: bool = True) -> bool:
        """Return whether a checkpoint of this step can be written: there is a folder, a step was done, and it has none yet.

        Args:
            progress: of the run.
            is_resumable: one that a run can go on from may take the place of one with weights only.
        """
        if self._saver is None or progress.steps_done <= 0:
            return False
        is_richer = is_resumable and (self._is_outdated or not self.is_resumable)
        return progress.steps_done != self._begun_step or is_richer

    def outdate(self) -> None:
        """The epoch came to its end: what was saved of its last step lacks what the end changes, and the next save replaces it.

        An average of the weights takes the epoch in, callbacks hear of it, the row says which epoch was the best.
        """
        self._is_outdated = True

    def save(
        self,
        model: nn.Module,
        progress: Progress,
        *,
        keep: Collection[int],
        averaging: NoAveraging,
        more: Callable[[], SavedState],
        in_background: bool = False,
    ) -> None:
        """Write the weights, and their average where there is one, as a checkpoint of this step; remove those that need not be kept.

        What came of it is known by `end`: at once, or later where it is written in the background.

        Args:
            model, progress: of this step.
            keep: steps whose checkpoints stay.
            averaging: of the weights.
            more: gathers the rest of the run's state.
            in_background: return when everything is copied.
        """
        step, self.syncs_later = progress.steps_done, in_background
        try:
            saved = more()
            tensors = {"model": model.state_dict(), **averaging.tensors(), **saved.tensors}
            state = {
                "progress": asdict(progress),
                "evaluated_weights": averaging.evaluates,
                "averaging": averaging.describe(),
                **saved.state,
            }
            content = self._saver.prepare(step, tensors, state)
        except CheckpointError as error:
            self._saver.give_up(step, error.message)
            return
        finally:
            self.syncs_later = False
        self._begun_step, self.is_resumable, self._is_outdated = step, "resume" in saved.state, False
        self._saver.save(
            content, keep=keep, before=self._sync_file if in_background else _nothing, in_background=in_background
        )

    def wait(self, *, is_a_stall: bool = False) -> None:
        """Wait for a save that is under way in the background.

        Args:
            is_a_stall: training could have gone on, were it not for the next save.
        """
        if self._saver is None:
            return
        seconds = self._saver.wait()
        if is_a_stall and seconds > 0.1 and not self._has_said_it_waits:
            self._has_said_it_waits = True
            self._say(
                f"A save waited {seconds:.1f} s for the one before it, which was still being written: saves come faster than the disk "
                f"takes them. Save less often to keep training from waiting."
            )

    def end(self) -> list[Outcome]:
        """Take note of the saves that ended since this was last asked, and tell what went wrong.

        A disk that fails does not stop the run: the next save tries again.
        """
        if self._saver is None:
            return []
        outcomes = self._saver.outcomes()
        for outcome in outcomes:
            if outcome.path is not None:
                self.saved_step, self._failures_in_a_row = outcome.step, 0
                continue
            self._begun_step, self._is_outdated = self.saved_step, True  # perhaps it was to replace that one
            self._failures_in_a_row += 1
            most = self._policy.max_failures
            count = (
                ""
                if most is None
                else f" It is failure {self._failures_in_a_row} in a row, and the run stops at {most}."
            )
            self._warn(f"warning: {outcome.problem} Training goes on; the next save tries again.{count}")
        self._tell_lines()
        return outcomes

    @property
    def has_given_up(self) -> bool:
        """Whether as many saves failed in a row as the policy bears with."""
        most = self._policy.max_failures
        return most is not None and self._failures_in_a_row >= most

    def mark_best(self, step: int, *, monitor: str, value: float) -> None:
        """Note that the checkpoint of this step, when it is written, is the best so far."""
        if self._saver is not None and self._begun_step == step:
            self._saver.mark_best(step, monitor=monitor, value=value)
            self._tell_lines()

    def warn_of_unsaved(self, progress: Progress) -> None:
        """Say at the end of a run when its last weights are not there."""
        if self._saver is not None and progress.steps_done != self.saved_step:
            last = (
                f"the last checkpoint is of step {self.saved_step}"
                if self.saved_step >= 0
                else "there is no checkpoint"
            )
            self._warn(f"warning: The weights of step {progress.steps_done} are NOT on the disk; {last}.")

    def close(self) -> None:
        """Bring a save that is under way to its end; nobody but the records is told of it any more.

        What could not be removed when it was replaced is tried once more: a run that is done makes no other save that would do it.
        """
        if self._saver is not None:
            self._saver.close()
            self.end()
            self._sweep()

    def _tell_lines(self) -> None:
        while self._lines:
            self._warn(f"warning: {self._lines.popleft()}")

    def _sync_file(self) -> None:
        """Bring the journal to the disk itself, before a checkpoint relies on its length."""
        with suppress(OSError):
            descriptor = os.open(self._journal, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _nothing() -> None:
    """Do nothing."""


def check_model(model: nn.Module) -> None:
    """Refuse a model whose state cannot be saved, before it is trained.

    Raises:
        ArgumentError: names the entry.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta:
            what = "a tensor without data" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ArgumentError(
                f"The model's state holds {name!r}, {what}, which a checkpoint of tensors cannot hold. Register it as a buffer, "
                f"or train without run_dir."
            )
