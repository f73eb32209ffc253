"""Everything that a run writes: its folder, the journal and what is fed by it, weights, curves."""

from __future__ import annotations

import math
import os
import shutil
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.errors import ArgumentError, CheckpointError, DataError, RefusedError, nearest
from velodrome.loop.progress import Progress, StopReason
from velodrome.record.journal import Journal, read_rows
from velodrome.record.progress import NoProgress
from velodrome.record.run_directory import RunDirectory
from velodrome.record.run_lock import LOCK_NAME
from velodrome.record.sink import say_on_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.checkpoint.saver import Outcome
    from velodrome.record.bill import Bill
    from velodrome.record.progress import ProgressView
    from velodrome.record.sink import Sink
    from velodrome.resume.run_state import SavedState
    from velodrome.step.averaging import NoAveraging

__all__ = ["RunFiles"]

_LOGGERS = ("csv", "tensorboard", "curves")
_OWN_NAMES = {
    "run.json", "recipe.toml", "preprocessing.json", "log.txt", "metrics.jsonl", "metrics.cut.jsonl", "metrics.csv", "tb", "curves.png", "checkpoints",
    "nonfinite", "events.jsonl", "profile", LOCK_NAME,
}  # fmt: skip
_WORTH_SAYING_S = 5.0
"""how long a run takes whose bill is said unasked"""


class RunFiles:
    """The records of one run; without a folder they are kept in memory and nothing is written.

    Args:
        run_dir: a new folder, or None.
        loggers: names out of "csv", "tensorboard" and "curves", or sinks; None is all three, as far as they are installed.
        policy: which checkpoints to keep.
        display: shows lines to people.
        is_main: whether this process speaks for all that train together; the others keep their history and say nothing.
        goes_on: the folder holds the run that is gone on with.
    Raises:
        ArgumentError: an unknown logger, or a folder that cannot be written to.
        RefusedError: the folder holds a run already.
    """

    def __init__(
        self,
        run_dir: str | Path | None,
        *,
        loggers: Sequence[Any] | None,
        policy: Checkpointing,
        display: ProgressView,
        is_main: bool = True,
        goes_on: bool = False,
    ) -> None:
        for logger in loggers or ():
            if isinstance(logger, str) and logger not in _LOGGERS:
                raise ArgumentError(f"loggers contains {logger!r}, which is unknown. {nearest(logger, _LOGGERS)}")
        self._display = display
        self._is_main = is_main
        self._policy = policy
        self._asked = loggers
        self.history: list[dict[str, Any]] = []
        self._journal: Journal | None = None
        self._saver: Any = None
        self._saved_step = -1
        self._begun_step = -1  # saved, or being saved in the background
        self._is_resumable = False
        self._is_outdated = False
        self._lines: deque[str] = deque()  # warnings that come from the background, too
        self._failures_in_a_row = 0
        self._syncs_later = False
        self._has_said_it_waits = False
        self.notify_of_save: Callable[[], None] = lambda: None
        """called in the background when there is something for `end_saves`"""
        self._goes_on = goes_on
        self._is_discarded = False
        self._directory: RunDirectory | None = None
        self._entries_before = _entries(run_dir)
        if run_dir is not None and goes_on:
            self._directory = RunDirectory.open(run_dir, say=self.warn)
            _check_progress(self._directory)
        elif run_dir is not None:
            _refuse_foreign_files(run_dir, self._entries_before)
            self._directory = RunDirectory.create(run_dir, say=self.warn)
        try:
            self._sinks = self._make_sinks()
        except BaseException:
            if self._directory is not None:
                self._discard(self._directory.path)
            raise

    @property
    def path(self) -> Path | None:
        """The run's folder, or None."""
        return None if self._directory is None else self._directory.path

    @property
    def writes(self) -> str:
        """What rows are written to, in words."""
        names = ["metrics.jsonl", *(type(sink).__name__ for sink in self._sinks)]
        return "the history in memory" if self._directory is None else ", ".join(names)

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint that this run wrote or went on from; -1 before there is one."""
        return self._saved_step

    @property
    def saved_is_resumable(self) -> bool:
        """Whether a run can go on from that checkpoint."""
        return self._is_resumable

    def say(self, line: str) -> None:
        """Show a line to people, and keep it in the run's log."""
        self._display.say(line)
        if self._directory is not None and not self._is_discarded:
            self._directory.log(line)

    def warn(self, line: str) -> None:
        """Show a line that must be seen, also when nothing else is shown."""
        if not self._is_main:
            return
        (say_on_stderr if isinstance(self._display, NoProgress) else self._display.say)(line)
        if self._directory is not None and not self._is_discarded:
            self._directory.log(line)

    @property
    def record(self) -> Mapping[str, Any]:
        """What the folder's `run.json` says; empty without a folder."""
        return {} if self._directory is None else self._directory.record

    def look_back(self, step: int, *, saved_step: int) -> None:
        """Take the history of a run that is over as it is; nothing is written.

        Raises:
            CheckpointError: the journal is damaged.
        """
        assert self._directory is not None
        rows = read_rows(self._directory.path / "metrics.jsonl")
        self.history = _epoch_rows(row for row in rows if row.get("step", 0) <= step)
        self._saved_step = self._begun_step = saved_step
        self._is_resumable = True

    def go_back(self, num_bytes: int | None, *, step: int) -> None:
        """Cut the records of an earlier run back to a checkpoint: the history is what it was then.

        Args:
            num_bytes: of the journal, see `sync_journal`; 0 begins it anew, None leaves it as it is.
            step: of the checkpoint; 0 where there is none.
        """
        if self._journal is None or not self._goes_on:
            return
        self._goes_on = False
        self.history = _epoch_rows(self._journal.go_back(num_bytes, step=step))
        if step:
            self._saved_step = self._begun_step = step
            self._is_resumable = True

    def sync_journal(self) -> int | None:
        """Bring the journal to the disk, or leave that to the background, and return its length."""
        return None if self._journal is None else self._journal.sync(durable=not self._syncs_later)

    def leave(self) -> None:
        """Close what is shown; nothing was done that the records do not know."""
        self._display.close()

    def start(self, facts: Mapping[str, object]) -> None:
        """Open the records; a trainer that goes on continues its own."""
        if self._directory is None:
            self._journal = Journal(None, (), say=self.warn)
            return
        if self._journal is None and not self._is_discarded and not self._goes_on:
            self._directory.start(facts)
        else:
            self._directory.reopen(facts)
        self._is_discarded = False
        if self._directory.taken_over:
            self.say(
                f"The lock of this run was left behind by {self._directory.taken_over}, which is gone. It is ours now."
            )
        self._journal = Journal(self._directory.path / "metrics.jsonl", self._sinks, say=self.warn)
        from velodrome.checkpoint.saver import Saver
        from velodrome.checkpoint.store import CheckpointStore

        folder = self._directory.path / "checkpoints"
        store = CheckpointStore(folder, run_id=self._directory.id, warn=self._lines.append)
        store.sweep()
        self._saver = Saver(
            store, keep_last=self._policy.keep_last, notify=lambda: self.notify_of_save(), warn=self._lines.append
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Record a row; an epoch's row joins the history."""
        if self._journal is not None:
            self._journal.write(row)
        if row["kind"] == "epoch":
            self.history.append({key: value for key, value in row.items() if key != "kind"})

    def record_bill(
        self, bill: Bill, *, epoch: int | None = None, findings: Sequence[str] = (), waits: Sequence[str] = ()
    ) -> None:
        """Record where the time went, in `events.jsonl`.

        Args:
            bill: so far, at the end of an epoch; or of the whole run, which is said, too, if it was not short.
            epoch: or None for the whole run.
            findings: what it means.
            waits: the lines that were seen waiting, and said already.
        """
        if not bill.batches:
            return
        if self._directory is not None and self._journal is not None and not self._is_discarded:
            self._directory.add_event(
                {
                    "event": "bill",
                    **({} if epoch is None else {"epoch": epoch}),
                    **bill.to_dict(),
                    **({"findings": [*findings, *waits]} if epoch is None else {}),
                }
            )
        if epoch is None and bill.wall_s >= _WORTH_SAYING_S:
            for line in (bill.line(), *findings):
                self.say(line)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose state cannot be saved, before it is trained.

        Raises:
            ArgumentError: names the entry.
        """
        if self._directory is None:
            return
        for name, value in model.state_dict().items():
            if not isinstance(value, Tensor) or value.is_meta:
                what = "a tensor without data" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ArgumentError(
                    f"The model's state holds {name!r}, {what}, which a checkpoint of tensors cannot hold. Register it as a buffer, "
                    f"or train without run_dir."
                )

    def can_save(self, progress: Progress, *, is_resumable: bool = True) -> bool:
        """Return whether a checkpoint of this step can be written: there is a folder, a step was done, and it has none yet.

        Args:
            progress: of the run.
            is_resumable: one that a run can go on from may take the place of one with weights only.
        """
        if self._saver is None or progress.steps_done <= 0:
            return False
        is_richer = is_resumable and (self._is_outdated or not self._is_resumable)
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

        What came of it is known by `end_saves`: at once, or later where it is written in the background.

        Args:
            model, progress: of this step.
            keep: steps whose checkpoints stay.
            averaging: of the weights.
            more: gathers the rest of the run's state.
            in_background: return when everything is copied.
        """
        step, self._syncs_later = progress.steps_done, in_background
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
            self._syncs_later = False
        self._begun_step, self._is_resumable, self._is_outdated = step, "resume" in saved.state, False
        self._saver.save(
            content, keep=keep, before=self._sync_file if in_background else _nothing, in_background=in_background
        )

    def wait_for_save(self, *, is_a_stall: bool = False) -> None:
        """Wait for a save that is under way in the background.

        Args:
            is_a_stall: training could have gone on, were it not for the next save.
        """
        if self._saver is None:
            return
        seconds = self._saver.wait()
        if is_a_stall and seconds > 0.1 and not self._has_said_it_waits:
            self._has_said_it_waits = True
            self.say(
                f"A save waited {seconds:.1f} s for the one before it, which was still being written: saves come faster than the disk "
                f"takes them. Save less often to keep training from waiting."
            )

    def end_saves(self) -> list[Outcome]:
        """Take note of the saves that ended since this was last asked, and tell what went wrong.

        A disk that fails does not stop the run: the next save tries again.
        """
        if self._saver is None:
            return []
        outcomes = self._saver.outcomes()
        for outcome in outcomes:
            if outcome.path is not None:
                self._saved_step, self._failures_in_a_row = outcome.step, 0
                continue
            self._begun_step, self._is_outdated = self._saved_step, True  # perhaps it was to replace that one
            self._failures_in_a_row += 1
            most = self._policy.max_failures
            count = (
                ""
                if most is None
                else f" It is failure {self._failures_in_a_row} in a row, and the run stops at {most}."
            )
            self.warn(f"warning: {outcome.problem} Training goes on; the next save tries again.{count}")
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

    def finish(self, reason: StopReason, progress: Progress, best: Mapping[str, Any] | None) -> None:
        """Close the records with the reason of the end."""
        self._close_saver()
        if self._journal is not None:
            self._journal.close()
        if self._saver is not None and progress.steps_done != self._saved_step:
            last = (
                f"the last checkpoint is of step {self._saved_step}"
                if self._saved_step >= 0
                else "there is no checkpoint"
            )
            self.warn(f"warning: The weights of step {progress.steps_done} are NOT on the disk; {last}.")
        if self._directory is not None:
            status = (
                "done"
                if reason
                in (StopReason.EPOCHS, StopReason.STEPS, StopReason.SECONDS, StopReason.EARLY, StopReason.REQUESTED)
                else "stopped"
            )
            self._directory.finish(
                status,
                {
                    "stop_reason": str(reason),
                    "progress": asdict(progress),
                    "best": best,
                    "saved_step": self._saved_step,
                },
            )
            self._draw_curves()
        self._display.close()

    def fail(self, reason: StopReason, error: BaseException, progress: Progress) -> None:
        """Record the error that ended the run."""
        self._close_saver()
        if self._journal is not None:
            self._journal.close()
        if self._directory is not None and not self._is_discarded:
            if not progress.steps_done and isinstance(error, (DataError, ArgumentError)):
                self._discard(self._directory.path)
            elif self._journal is not None:
                status = "stopped" if reason is StopReason.INTERRUPTED else "failed"
                facts = {
                    "stop_reason": str(reason),
                    "error": f"{type(error).__name__}: {error}",
                    "progress": asdict(progress),
                }
                self._directory.finish(status, facts)
                self._directory.log("".join(traceback.format_exception(error)).rstrip())
        if self._directory is not None:
            self._directory.release()
        self._display.close()

    def _close_saver(self) -> None:
        """Bring a save that is under way to its end; nobody but the records is told of it any more."""
        if self._saver is not None:
            self._saver.close()
            self.end_saves()

    def _tell_lines(self) -> None:
        while self._lines:
            self.warn(f"warning: {self._lines.popleft()}")

    def _sync_file(self) -> None:
        """Bring the journal to the disk itself, before a checkpoint relies on its length."""
        if self._directory is not None:
            with suppress(OSError):
                descriptor = os.open(self._directory.path / "metrics.jsonl", os.O_RDWR)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _discard(self, folder: Path) -> None:
        """Remove what a run wrote that was refused before its first step, and nothing else."""
        self._is_discarded = True
        for name in _OWN_NAMES - (self._entries_before or set()):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        if self._entries_before is None:
            with suppress(OSError):  # it holds something of the user's
                folder.rmdir()

    def _make_sinks(self) -> list[Sink]:
        """Make what was asked for: a missing package is an error then, and only a line when nobody asked."""
        if self._directory is None:
            return []
        from velodrome.record.sinks import default_sinks, make_sinks

        if self._asked is None:
            return default_sinks(self._directory.path, self.say)
        named = [logger for logger in self._asked if isinstance(logger, str) and logger != "curves"]
        return [
            *make_sinks(self._directory.path, named),
            *(logger for logger in self._asked if not isinstance(logger, str)),
        ]

    def _draw_curves(self) -> None:
        if self._directory is None or not self.history or (self._asked is not None and "curves" not in self._asked):
            return
        from velodrome.report.plots import plot_history

        try:
            plot_history(self.history, self._directory.path / "curves.png")
        except ArgumentError as error:  # matplotlib is missing
            self.say(f"curves.png was not drawn: {error}")
        except OSError as error:
            self.warn(f"warning: curves.png was not written: {error}")


def _nothing() -> None:
    """Do nothing."""


def _check_progress(directory: RunDirectory) -> None:
    """Refuse a record whose counters are not those that this release knows."""
    progress: Any = directory.record.get("progress") or {}
    unknown = sorted(progress.keys() - asdict(Progress()).keys())
    if unknown:
        raise RefusedError(
            f"{directory.path / 'run.json'} counts {', '.join(unknown)[:200]}, which this release does not know. Go on with the release "
            f"that wrote it, or restore the file."
        )


def _epoch_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # What is not finite has no number in JSON.
    return [
        {key: math.nan if value is None else value for key, value in row.items() if key != "kind"}
        for row in rows
        if row["kind"] == "epoch"
    ]


def _refuse_foreign_files(folder: str | Path, entries: set[str] | None) -> None:
    """Refuse a folder with files of the names that a run writes: they are somebody's, and would be written over."""
    # Lines are added to a log, never written over; a run that was killed before its run.json leaves one.
    # So is its lock, which says that the rest is that run's as well.
    taken = sorted((_OWN_NAMES - {"log.txt"}) & (entries or set()))
    if taken and "run.json" not in taken and LOCK_NAME not in taken:
        raise RefusedError(
            f"run_dir={str(folder)!r} holds {', '.join(taken)}, which a run would write over. Nothing was changed. Give a new folder."
        )


def _entries(folder: str | Path | None) -> set[str] | None:
    """Return what a folder holds, or None when it does not exist yet."""
    try:
        return None if folder is None else set(os.listdir(folder))
    except OSError:
        return None
