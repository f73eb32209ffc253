"""Everything that a run writes: its folder, the journal and what is fed by it, weights, curves."""

from __future__ import annotations

import os
import shutil
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, CheckpointError, DataError, nearest
from velodrome.loop.progress import Progress, StopReason
from velodrome.record.journal import Journal
from velodrome.record.progress import NoProgress
from velodrome.record.run_directory import RunDirectory
from velodrome.record.sink import say_on_stderr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.record.progress import ProgressView
    from velodrome.record.sink import Sink

__all__ = ["RunFiles"]

_LOGGERS = ("csv", "tensorboard", "curves")


class RunFiles:
    """The records of one run; without a folder they are kept in memory and nothing is written.

    Args:
        run_dir: a new folder, or None.
        loggers: names out of "csv", "tensorboard" and "curves", or sinks; None is all three, as far as they are installed.
        policy: which checkpoints to keep.
        display: shows lines to people.
    Raises:
        ArgumentError: an unknown logger, or a folder that cannot be written to.
        RefusedError: the folder holds a run already.
    """

    def __init__(
        self, run_dir: str | Path | None, *, loggers: Sequence[Any] | None, policy: Checkpointing, display: ProgressView
    ) -> None:
        for logger in loggers or ():
            if isinstance(logger, str) and logger not in _LOGGERS:
                raise ArgumentError(f"loggers contains {logger!r}, which is unknown. {nearest(logger, _LOGGERS)}")
        self._display = display
        self._policy = policy
        self._asked = loggers
        self._entries_before = _entries(run_dir)
        self._directory = None if run_dir is None else RunDirectory.create(run_dir, say=self.warn)
        self._sinks = self._make_sinks()
        self._journal: Journal | None = None
        self._store: Any = None
        self._best: tuple[int, float] | None = None
        self._saved_step = -1
        self._is_discarded = False
        self.history: list[dict[str, Any]] = []

    @property
    def path(self) -> Path | None:
        """The run's folder, or None."""
        return None if self._directory is None else self._directory.path

    def say(self, line: str) -> None:
        """Show a line to people, and keep it in the run's log."""
        self._display.say(line)
        if self._directory is not None and not self._is_discarded:
            self._directory.log(line)

    def warn(self, line: str) -> None:
        """Show a line that must be seen, also when nothing else is shown."""
        (say_on_stderr if isinstance(self._display, NoProgress) else self._display.say)(line)
        if self._directory is not None and not self._is_discarded:
            self._directory.log(line)

    def start(self, facts: Mapping[str, object]) -> None:
        """Open the records; a trainer that goes on continues its own."""
        if self._directory is None:
            self._journal = Journal(None, (), say=self.warn)
            return
        if self._journal is None and not self._is_discarded:
            self._directory.start(facts)
        else:
            self._directory.reopen(facts)
        self._is_discarded = False
        self._journal = Journal(self._directory.path / "metrics.jsonl", self._sinks, say=self.warn)
        from velodrome.checkpoint.store import CheckpointStore

        self._store = CheckpointStore(self._directory.path / "checkpoints", run_id=self._directory.id)

    def write(self, row: Mapping[str, Any]) -> None:
        """Record a row; an epoch's row joins the history."""
        if self._journal is not None:
            self._journal.write(row)
        if row["kind"] == "epoch":
            self.history.append({key: value for key, value in row.items() if key != "kind"})

    def save(self, model: nn.Module, progress: Progress) -> Path | None:
        """Write the weights as a checkpoint of this step; a disk that fails is told and does not stop the run."""
        if self._store is None:
            return None
        step = progress.steps_done
        if step == self._saved_step:
            return None
        try:
            path = self._store.save(step, {"model": model.state_dict()}, {"progress": asdict(progress)})
            self._saved_step = step
            self._prune()
        except CheckpointError as error:
            self.warn(f"warning: {error} Training goes on; the next save tries again.")
            return None
        return path

    def mark_best(self, model: nn.Module, progress: Progress, value: float) -> None:
        """Keep this step's weights as the best so far."""
        if self._store is None:
            return
        self.save(model, progress)
        if self._saved_step == progress.steps_done:
            self._best = (progress.steps_done, value)
            try:
                self._store.mark_best(progress.steps_done, monitor=self._policy.monitor, value=value)
                self._prune()
            except CheckpointError as error:
                self.warn(f"warning: {error} Training goes on; the next best epoch tries again.")

    def finish(self, reason: StopReason, progress: Progress, best: Mapping[str, Any] | None) -> None:
        """Close the records with the reason of the end."""
        if self._journal is not None:
            self._journal.close()
        if self._directory is not None:
            status = (
                "done"
                if reason in (StopReason.EPOCHS, StopReason.STEPS, StopReason.SECONDS, StopReason.REQUESTED)
                else "stopped"
            )
            self._directory.finish(status, {"stop_reason": str(reason), "progress": asdict(progress), "best": best})
            self._draw_curves()
        self._display.close()

    def fail(self, reason: StopReason, error: BaseException, progress: Progress) -> None:
        """Record the error that ended the run."""
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
        self._display.close()

    def _discard(self, folder: Path) -> None:
        """Remove what a run wrote that was refused before its first step: nothing half-written stays behind."""
        self._is_discarded = True
        for entry in set(os.listdir(folder)) - (self._entries_before or set()):
            path = folder / entry
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._entries_before is None:
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

    def _prune(self) -> None:
        keep = () if self._best is None or not self._policy.keep_best else (self._best[0],)
        self._store.prune(keep_last=self._policy.keep_last, keep=keep)

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


def _entries(folder: str | Path | None) -> set[str] | None:
    """Return what a folder holds, or None when it does not exist yet."""
    try:
        return None if folder is None else set(os.listdir(folder))
    except OSError:
        return None
