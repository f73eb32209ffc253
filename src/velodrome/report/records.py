"""Reads the records of a run back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from velodrome.errors import ArgumentError

__all__ = ["read_records"]

MAX_BYTES = 1 << 30


def read_records(path: str | os.PathLike[str], *, kind: str | None = None) -> list[dict[str, object]]:
    """Return the rows of a `metrics.jsonl`, oldest first.

    A last line that a crash cut short is left out: it was never a row. A NaN was recorded as null, and comes
    as None.

    Args:
        path: the file, or the run directory that holds it.
        kind: "epoch", "step" or "evaluation" (one within the training loop) gives only those rows.
    Raises:
        ArgumentError: there is no such file, it is absurdly large, or a line in the middle is no row.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "metrics.jsonl"
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ValueError(f"it is no plain file of at most {MAX_BYTES:,} bytes")
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}. The records of a run are the metrics.jsonl "
            "in its run directory. Give that file or that folder.",
            path=str(file),
        ) from error
    rows: list[dict[str, object]] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line)
        if row is None and number == len(lines):  # no line end follows it: torn
            continue
        if row is None:
            raise ArgumentError(
                f"Line {number} of {file} is not a record: {_quote(line)}. Each line must "
                "be one JSON object. Remove that line to read the rest.",
                path=str(file),
                line=number,
            )
        if kind is None or row.get("kind") == kind:
            rows.append(row)
    return rows


def _quote(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return row if isinstance(row, dict) else None
