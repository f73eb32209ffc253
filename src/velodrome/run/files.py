"""Everything that a run writes: its folder, the journal and what is fed by it, curves; checkpoints are `checkpoint_files.py`'s."""

from __future__ import annotations

import math
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import ArgumentError, DataError, nearest
from velodrome.loop.progress import StopReason
from velodrome.record.journal import Journal, read_rows
from velodrome.record.progress import NoProgress
from velodrome.record.run_directory import RunDirectory
from velodrome.record.sink import say_on_stderr
from velodrome.run.checkpoint_files import CheckpointFiles
from velodrome.run.last_report import describe_going_on, write_last_report
from velodrome.run.own_folder import check_progress, discard, entries_of, refuse_foreign_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.loop.progress import Progress
    from velodrome.record.bill import Bill
    from velodrome.record.progress import ProgressView
    from velodrome.record.sink import Sink

__all__ = ["WORTH_SAYING_S", "RunFiles"]

_LOGGERS = ("csv", "tensorboard", "curves", "report")
_DRAWN = ("curves", "report")  # at the end of a run, from its rows; the others are fed with rows
WORTH_SAYING_S = 5.0
"""how long a run takes whose bill is said unasked"""


class RunFiles:
    """The records of one run; without a folder they are kept in memory and nothing is written.

    Args:
        run_dir: a new folder, or None.
        loggers: names out of "csv", "tensorboard", "curves" and "report", or sinks; None is all four, as far as they are installed.
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
        self._asked = loggers
        self.history: list[dict[str, Any]] = []
        self._journal: Journal | None = None
        self.checkpoints = CheckpointFiles(policy, say=self.say, warn=self.warn)
        self._directions: dict[str, Literal["min", "max"]] = {policy.monitor: policy.direction}  # for the curves
        self._goes_on = goes_on
        self._is_discarded = False
        self._may_be_refused = goes_on
        self._held: list[str] = []
        """lines said before a run goes on"""
        self._record_before: Mapping[str, Any] = {}  # what `run.json` said when the run went on
        self._directory: RunDirectory | None = None
        self._entries_before = entries_of(run_dir)
        if run_dir is not None and goes_on:
            self._directory = RunDirectory.open(run_dir, say=self.warn)
            check_progress(self._directory)
        elif run_dir is not None:
            refuse_foreign_files(run_dir, self._entries_before)
            self._directory = RunDirectory.create(run_dir, say=self.warn)
        try:
            self._sinks = self._make_sinks()
        except BaseException:
            self._discard()
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

    def say(self, line: str) -> None:
        """Show a line to people, and keep it in the run's log."""
        self._display.say(line)
        self._log(line)

    def warn(self, line: str) -> None:
        """Show a line that must be seen, also when nothing else is shown."""
        if not self._is_main:
            return
        (say_on_stderr if isinstance(self._display, NoProgress) else self._display.say)(line)
        self._log(line)

    def _log(self, line: str) -> None:
        """Keep a line; that of a run that is to go on when it does, for it may be refused yet."""
        if self._directory is None or self._is_discarded:
            return
        if self._may_be_refused:
            self._held.append(line)
        else:
            self._directory.log(line)

    def _write_held(self) -> None:
        self._may_be_refused = False
        held, self._held = self._held, []
        for line in held:
            self._log(line)

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
        self.checkpoints.go_on_from(saved_step)
        self._write_held()

    def go_back(self, num_bytes: int | None, *, step: int) -> None:
        """Cut the records of an earlier run back to a checkpoint: the history is what it was then.

        Args:
            num_bytes: of the journal, see `sync_journal`; 0 begins it anew, None leaves it as it is.
            step: of the checkpoint; 0 where there is none.
        """
        if self._journal is None or not self._goes_on:
            return
        self._goes_on = False
        if self._directory is not None:
            self._directory.add_event(describe_going_on(self._record_before, self._directory.record, step=step))
        self.history = _epoch_rows(self._journal.go_back(num_bytes, step=step))
        if step:
            self.checkpoints.go_on_from(step)

    def sync_journal(self) -> int | None:
        """Bring the journal to the disk, or leave that to the background, and return its length."""
        return None if self._journal is None else self._journal.sync(durable=not self.checkpoints.syncs_later)

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
            self._record_before = dict(self._directory.record)
            self._directory.reopen(facts)
        self._is_discarded = False
        if self._directory.taken_over:
            self.say(
                f"The lock of this run was left behind by {self._directory.taken_over}, which is gone. It is ours now."
            )
        self._journal = Journal(self._directory.path / "metrics.jsonl", self._sinks, say=self.warn)
        self.checkpoints.open(self._directory.path, self._directory.id)
        self._write_held()

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
        if epoch is None and bill.wall_s >= WORTH_SAYING_S:
            for line in (bill.line(), *findings):
                self.say(line)

    def finish(self, reason: StopReason, progress: Progress, best: Mapping[str, Any] | None) -> None:
        """Close the records with the reason of the end."""
        self.checkpoints.close()
        if self._journal is not None:
            self._journal.close()
        self.checkpoints.warn_of_unsaved(progress)
        if self._directory is not None:
            status = "done" if reason.is_end else "stopped"
            self._directory.finish(
                status,
                {
                    "stop_reason": str(reason),
                    "progress": asdict(progress),
                    "best": best,
                    "saved_step": self.checkpoints.saved_step,
                },
            )
            self._draw()
        self._display.close()

    def fail(self, reason: StopReason, error: BaseException, progress: Progress) -> None:
        """Record the error that ended the run."""
        self.checkpoints.close()
        if self._journal is not None:
            self._journal.close()
        if self._directory is not None and not self._is_discarded:
            if not progress.steps_done and isinstance(error, (DataError, ArgumentError)):
                self._discard()
            elif self._journal is not None:
                status = "stopped" if reason is StopReason.INTERRUPTED else "failed"
                facts = {
                    "stop_reason": str(reason),
                    "error": f"{type(error).__name__}: {error}",
                    "progress": asdict(progress),
                }
                self._directory.finish(status, facts)
                self._directory.log("".join(traceback.format_exception(error)).rstrip())
                if (
                    self._asked is None or "report" in self._asked
                ):  # without curves: nothing large is imported when an error is on its way
                    write_last_report(self._directory.path, b"", draws=False, warn=self.warn)
        if self._directory is not None:
            self._directory.release()
        self._display.close()

    def _discard(self) -> None:
        """Remove what a run wrote that was refused before its first step."""
        if self._directory is not None:
            self._is_discarded = True
            discard(self._directory.path, self._entries_before)

    def _make_sinks(self) -> list[Sink]:
        """Make what was asked for: a missing package is an error then, and only a line when nobody asked."""
        if self._directory is None:
            return []
        from velodrome.record.sinks import default_sinks, make_sinks

        if self._asked is None:
            return default_sinks(self._directory.path, self.say)
        named = [logger for logger in self._asked if isinstance(logger, str) and logger not in _DRAWN]
        return [
            *make_sinks(self._directory.path, named),
            *(logger for logger in self._asked if not isinstance(logger, str)),
        ]

    def _draw(self) -> None:
        """Draw the curves and write the report, as far as they were asked for; what fails is one line."""
        if self._directory is None:
            return
        has_curves = self._asked is None or "curves" in self._asked
        drawn = self._draw_curves(self._directory.path) if has_curves and self.history else b""
        if self._asked is None or "report" in self._asked:
            write_last_report(self._directory.path, drawn, draws=has_curves, warn=self.warn)

    def _draw_curves(self, folder: Path) -> bytes:
        """Write `curves.png` and return it; nothing where it could not be drawn."""
        from velodrome.report.plots import plot_history

        try:
            plot_history(self.history, folder / "curves.png", directions=self._directions)
            return (folder / "curves.png").read_bytes()
        except ArgumentError as error:  # matplotlib is missing
            self.say(f"curves.png was not drawn: {error}")
        except OSError as error:
            self.warn(f"warning: curves.png was not written: {error}")
        return b""


def _epoch_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # What is not finite has no number in JSON.
    return [
        {key: math.nan if value is None else value for key, value in row.items() if key != "kind"}
        for row in rows
        if row["kind"] == "epoch"
    ]
