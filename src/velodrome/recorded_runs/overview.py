"""What a run is and how far it came, from a few small reads: for lists of runs, the broken ones included."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.scan import BEST_NAME, read_best
from velodrome.errors import ArgumentError, CheckpointError, RefusedError
from velodrome.record.reading import parse_strict, read_record
from velodrome.record.run_lock import LOCK_NAME, Holder, find_holder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Overview", "find_runs", "holds_a_run", "look_at"]

_TAIL_BYTES = 1 << 18
_MARKS = ("run.json", "metrics.jsonl", "checkpoints")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """One run at a glance."""

    path: Path
    status: str
    """"done", "failed", "stopped", "under way", "killed" (it never said how it ended), or "broken"."""
    recipe: str = ""
    """the recipe or script that was run"""
    epochs_done: int | None = None
    steps_done: int | None = None
    monitor: str = ""
    best: float | None = None
    best_step: int | None = None
    started: datetime
    record: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    holder: Holder | None = None
    last_row: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def find_runs(root: Path) -> list[Overview]:
    """Return the runs in a folder, newest first; one that is broken is among them and says what is wrong.

    Args:
        root: the folder that holds runs, or a run itself.
    Raises:
        ArgumentError: there is no such folder, or it cannot be listed.
    """
    if (root / "run.json").is_file():
        return [look_at(root)]
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and holds_a_run(entry)]
    except OSError as error:
        raise ArgumentError(
            f"{root} cannot be listed: {error.strerror}. Give the folder that holds runs: velodrome runs DIR", path=root
        ) from error
    return sorted(map(look_at, folders), key=lambda run: (run.started, run.path.name), reverse=True)


def holds_a_run(folder: Path) -> bool:
    """Return whether a folder has files of a run, whole or broken."""
    return any(os.path.lexists(folder / name) for name in _MARKS)


def look_at(folder: Path, *, links: Collection[Path] = ()) -> Overview:
    """Read what a run says about itself; what cannot be read is told in `problems`.

    Args:
        folder: the run directory.
        links: files of it that are not to be read, see `find_links`.
    Cost: three small reads and the end of the journal.
    """
    problems: list[str] = []
    record: Mapping[str, Any] = {}
    holder = best = None
    try:
        holder = None if folder / LOCK_NAME in links else find_holder(folder)
        record = {} if folder / "run.json" in links else read_record(folder)
    except RefusedError as error:
        problems.append(error.message)
    checkpoints = folder / "checkpoints"
    try:
        best = None if checkpoints in links or checkpoints / BEST_NAME in links else read_best(checkpoints)
    except CheckpointError as error:
        problems.append(error.message)
    row = {} if folder / "metrics.jsonl" in links else _last_row(folder / "metrics.jsonl")
    progress = record.get("progress") or {}
    epochs = progress.get("epochs_done", row.get("epoch") if row.get("kind") == "epoch" else None)
    said = record.get("status")
    return Overview(
        path=folder,
        status="under way" if holder is not None else _status(said),
        recipe=_recipe(record),
        epochs_done=epochs if isinstance(epochs, int) else _epoch_under_way(row),
        steps_done=_whole(progress.get("steps_done", row.get("step"))),
        monitor="" if best is None else best.monitor,
        best=None if best is None else best.value,
        best_step=None if best is None else best.step,
        started=_started(record, folder),
        record=record,
        holder=holder,
        last_row=row,
        problems=tuple(problems),
    )


def _status(said: object) -> str:
    if said == "running":
        return "killed"
    return said if said in ("done", "failed", "stopped") and isinstance(said, str) else "broken"


def _recipe(record: Mapping[str, Any]) -> str:
    """Return the recipe on the command line, or the script."""
    command = record.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(each, str) for each in command):
        return ""
    if "train" in command[1:]:
        behind = command[command.index("train", 1) + 1 :]
        return Path(behind[0]).name if behind else ""
    return Path(command[0]).name


def _last_row(file: Path) -> Mapping[str, Any]:
    """Return the last whole row of a journal, or nothing: of a file that is being written to, or damaged."""
    try:
        if not file.is_file():
            return {}
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            lines = stream.read(_TAIL_BYTES).split(b"\n")[:-1]
        row = parse_strict(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def _epoch_under_way(row: Mapping[str, Any]) -> int | None:
    """Return the epochs that are over when the last row stands in the middle of one."""
    epoch = _whole(row.get("epoch"))
    return None if epoch is None else epoch - 1


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _started(record: Mapping[str, Any], folder: Path) -> datetime:
    try:
        started = datetime.fromisoformat(str(record.get("started")))
        return started if started.tzinfo is not None else started.replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(folder.stat().st_mtime, UTC)
