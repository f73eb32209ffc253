"""Reading what a run directory holds as what it may be: somebody else's files.

Sizes are limited before a byte is parsed, links are refused where a run that goes on would read or write through them, and whatever
is not as a run writes it ends in one sentence.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from velodrome.errors import RefusedError

__all__ = [
    "MAX_JOURNAL_BYTES",
    "MAX_LINE_BYTES",
    "MAX_RECORD_BYTES",
    "RUN_ENTRIES",
    "check_counts",
    "find_links",
    "parse_strict",
    "read_limited",
    "read_record",
    "refuse_links",
]

MAX_RECORD_BYTES = 1 << 24
MAX_JOURNAL_BYTES = 1 << 30
"""of metrics.jsonl, which is read whole: some five million rows"""
MAX_LINE_BYTES = 1 << 24

# What a run reads or writes below its own folder.
RUN_ENTRIES = {
    "run.json", "recipe.toml", "preprocessing.json", "log.txt", "metrics.jsonl", "metrics.cut.jsonl", "metrics.csv", "events.jsonl",
    "tb", "curves.png", "report.html", "checkpoints", "nonfinite", "profile", "lock.json",
}  # fmt: skip


def read_limited(path: Path, limit: int) -> bytes:
    """Return the content of a plain file of at most `limit` bytes.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is a pipe, a folder or a device, or too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise ValueError("it is not a plain file")
    if status.st_size > limit:
        raise ValueError(f"it has {status.st_size:,} bytes, and at most {limit:,} are read")
    with path.open("rb") as file:
        return file.read(limit)


def parse_strict(data: bytes) -> Any:  # Any: JSON
    """Parse JSON without NaN and infinities, which a run never writes.

    Raises:
        ValueError: no such JSON, nested too deep, or with a number of thousands of digits.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the `run.json` of a run directory says.

    Raises:
        RefusedError: it is missing, or not what a run writes.
    """
    path = folder / "run.json"
    try:
        record = parse_strict(read_limited(path, MAX_RECORD_BYTES))
        _check_record(record)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RefusedError(
            f"{path} cannot be read: {reason}. It says which run the folder holds, and nothing was changed. Restore "
            f"it, or give another run_dir.",
            path=os.fspath(folder),
        ) from error
    return cast("dict[str, Any]", record)


def refuse_links(folder: Path) -> None:
    """Refuse to go on with a run of whose files one is a link: it may lead to a file that is not the run's to change.

    The folder itself may be one.

    Raises:
        RefusedError: names the first link.
    """
    link = next(find_links(folder), None)
    if link is not None:
        raise RefusedError(
            f"{link} is a link to {os.readlink(link)!r}. Files of a run that is gone on with are plain files in its own folder, so that "
            f"nothing outside is read or changed; nothing was. Put a copy of the file in the place of the link.",
            path=str(link),
        )


def find_links(folder: Path) -> Iterator[Path]:
    """Yield the files of a run, and of its checkpoints, that are links."""
    for entry in _scan(folder):
        if entry.name in RUN_ENTRIES and entry.is_symlink():
            yield Path(entry.path)
    if (folder / "checkpoints").is_symlink():
        return
    for entry in _scan(folder / "checkpoints"):
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir():
            yield from (Path(inner.path) for inner in _scan(Path(entry.path)) if inner.is_symlink())


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # not there, or no folder: said by those who need it
        return []


def _check_record(record: object) -> None:
    """Compare a record with what a run writes, as far as anybody relies on it."""
    if not isinstance(record, Mapping):
        raise ValueError("it is no table")
    run_id = record.get("id")
    if not isinstance(run_id, str) or not 0 < len(run_id) <= 200:
        raise ValueError("it has no id")
    for name in ("status", "stop_reason", "started", "finished", "error", "host"):
        if not isinstance(record.get(name), str | None):
            raise ValueError(f"{name} is no text")
    for name in ("progress", "best", "budget"):
        if not isinstance(record.get(name), dict | None):
            raise ValueError(f"{name} is no table")
    check_counts(record.get("progress") or {})


def check_counts(progress: Mapping[str, object]) -> None:
    """Compare the counters of a run with what one counts.

    Raises:
        ValueError: names the first that is no number, negative, or too large for a counter.
    """
    for name, value in progress.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 63:
            raise ValueError(f"progress.{name} is no count")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")
