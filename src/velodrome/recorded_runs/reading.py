"""Reading the records of a run for people: what is damaged is told in words, and the rest is read all the same."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.record.reading import MAX_RECORD_BYTES, parse_strict, read_limited
from velodrome.report.facts import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["JournalRows", "read_events", "read_journal", "read_log", "read_recipe"]

_MAX_JOURNAL_BYTES = 1 << 28
_MAX_EVENTS_BYTES = 1 << 26
_MAX_LOG_BYTES = 1 << 20  # the end of it
_MAX_STEP_ROWS = 2000
_MAX_EVENTS = 200
_STEP_ROW = b'{"kind": "step"'
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S{0,10}) (.*)")


@dataclass(frozen=True, kw_only=True)
class JournalRows:
    """Of a journal, by their kinds."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """of log points; evenly chosen"""
    num_steps: int = 0
    """how many of them there are in the file"""


def read_journal(file: Path, problems: list[str]) -> JournalRows:
    """Return the rows of a journal.

    Args:
        file: `metrics.jsonl`.
        problems: what cannot be read is added to them.
    Cost: reads the file whole, and parses all of it but at most 2,001 rows of log points, evenly chosen and with the last one.
    """
    if not file.exists():
        return JournalRows()
    lines = _read_lines(file, _MAX_JOURNAL_BYTES, problems)
    of_steps = [line for line in lines if line.startswith(_STEP_ROW)]
    every = max(1, -(-len(of_steps) // _MAX_STEP_ROWS))
    chosen = of_steps[::every]
    if of_steps and (len(of_steps) - 1) % every:
        chosen.append(of_steps[-1])
    others = (line for line in lines if not line.startswith(_STEP_ROW))
    rows = _parse_lines([*others, *chosen], file, problems, is_row=_says_where)
    epochs, evaluations, steps = (
        [row for row in rows if row.get("kind") == kind] for kind in ("epoch", "evaluation", "step")
    )
    return JournalRows(epochs=epochs, evaluations=evaluations, steps=steps, num_steps=len(of_steps))


def read_events(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the events of `events.jsonl`."""
    return _parse_lines(_read_lines(file, _MAX_EVENTS_BYTES, problems), file, problems) if file.exists() else []


def read_log(file: Path, problems: list[str]) -> tuple[list[Event], int]:
    """Return the newest entries of `log.txt`, each with the lines below it that have no time, and how many are left out."""
    try:
        if not file.exists():
            return [], 0
        if not file.is_file():
            raise ValueError("it is not a plain file")
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _MAX_LOG_BYTES))
            text = stream.read(_MAX_LOG_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        problems.append(_cannot_be_read(file, error))
        return [], 0
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        stamped = _STAMPED.fullmatch(line)
        if stamped is not None:
            found.append((stamped[1], [stamped[2]]))
        elif line and found:
            found[-1][1].append(line)
    events = [Event(time=time, text="\n".join(lines)) for time, lines in found]
    return events[-_MAX_EVENTS:], max(0, len(events) - _MAX_EVENTS)


def read_recipe(file: Path, problems: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the text of `recipe.toml` and what it says; a run that was begun in Python has none."""
    if not file.exists():
        return "", {}
    text = ""
    try:
        text = read_limited(file, MAX_RECORD_BYTES).decode("utf-8", "replace")
        table = tomllib.loads(text)
        json.dumps(
            table, default=str
        )  # a whole number in hexadecimal digits may be too long to be written, and so to be shown
        return text, table
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        problems.append(_cannot_be_read(file, error))
        return text, {}


def _read_lines(file: Path, limit: int, problems: list[str]) -> list[bytes]:
    """Return the whole lines of a file; one that is being written, or was cut short, is none yet."""
    try:
        return read_limited(file, limit).split(b"\n")[:-1]
    except (OSError, ValueError) as error:
        problems.append(_cannot_be_read(file, error))
        return []


def _says_where(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a journal has the numbers of its epoch and step, as every row has that a run wrote."""
    return type(row.get("step")) is int and (row.get("kind") == "step" or type(row.get("epoch")) is int)


def _parse_lines(
    lines: Iterable[bytes], file: Path, problems: list[str], *, is_row: Callable[[Mapping[str, Any]], bool] = bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    num_damaged = 0
    for line in lines:
        try:
            row = parse_strict(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and is_row(row):
            rows.append(row)
        else:
            num_damaged += 1
    if num_damaged:
        what = "1 line is damaged and was" if num_damaged == 1 else f"{num_damaged:,} lines are damaged and were"
        problems.append(f"{file.name}: {what} left out.")
    return rows


def _cannot_be_read(file: Path, error: Exception) -> str:
    return f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}."
