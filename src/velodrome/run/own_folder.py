"""Which files of a run directory are the run's own: nobody else's are written over or removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from velodrome.errors import RefusedError
from velodrome.loop.progress import Progress
from velodrome.record.reading import RUN_ENTRIES
from velodrome.record.run_lock import LOCK_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.record.run_directory import RunDirectory

__all__ = ["check_progress", "discard", "entries_of", "refuse_foreign_files"]


def refuse_foreign_files(folder: str | Path, entries: set[str] | None) -> None:
    """Refuse a folder with files of the names that a run writes: they are somebody's, and would be written over."""
    # Lines are added to a log, never written over; a run that was killed before its run.json leaves one.
    # So is its lock, which says that the rest is that run's as well.
    taken = sorted((RUN_ENTRIES - {"log.txt"}) & (entries or set()))
    if taken and "run.json" not in taken and LOCK_NAME not in taken:
        raise RefusedError(
            f"run_dir={str(folder)!r} holds {', '.join(taken)}, which a run would write over. Nothing was changed. Give a new folder."
        )


def entries_of(folder: str | Path | None) -> set[str] | None:
    """Return what a folder holds, or None when it does not exist yet."""
    try:
        return None if folder is None else set(os.listdir(folder))
    except OSError:
        return None


def discard(folder: Path, entries_before: set[str] | None) -> None:
    """Remove what a run wrote that was refused before its first step, and nothing else."""
    for name in RUN_ENTRIES - (entries_before or set()):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    if entries_before is None:
        with suppress(OSError):  # it holds something of the user's
            folder.rmdir()


def check_progress(directory: RunDirectory) -> None:
    """Refuse a record whose counters are not those that this release knows."""
    progress: Any = directory.record.get("progress") or {}
    unknown = sorted(progress.keys() - asdict(Progress()).keys())
    if unknown:
        raise RefusedError(
            f"{directory.path / 'run.json'} counts {', '.join(unknown)[:200]}, which this release does not know. Go on with the release "
            f"that wrote it, or restore the file."
        )
