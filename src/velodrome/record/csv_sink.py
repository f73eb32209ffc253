"""`metrics.csv`: the epoch rows as a table, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from velodrome.record.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["CsvSink"]


class CsvSink:
    """Writes one line an epoch; a value that comes late (a rare validation) adds a column to all lines.

    The table is a copy of the journal, so a file that is there already is replaced by the first row.

    Args:
        path: where the table belongs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Mapping[str, object]] = []
        self._columns: list[str] = []
        self._is_whole = True

    def write(self, row: Mapping[str, object]) -> None:
        """Append an epoch row; rewrite the whole table, in one move, when it brings a new column."""
        if row.get("kind") != "epoch":
            return
        row = {name: value for name, value in row.items() if name != "kind"}
        self._rows.append(row)
        new_columns = [name for name in row if name not in self._columns]
        self._columns += new_columns
        was_whole, self._is_whole = self._is_whole, False
        if new_columns or not was_whole:
            self._rewrite()
        else:
            with open(self._path, "ab") as file:
                file.write(_format_lines([[row.get(name) for name in self._columns]]))
        self._is_whole = True

    def go_on(self, rows: Sequence[Mapping[str, object]], step: int) -> None:
        """Take the rows that a resumed run keeps; the table is written anew with the next one."""
        del step
        kept = [
            {name: value for name, value in row.items() if name != "kind"} for row in rows if row["kind"] == "epoch"
        ]
        self._rows = list(kept)
        self._columns = list(dict.fromkeys(name for row in kept for name in row))
        self._is_whole = not kept

    def close(self) -> None:
        """Write the table again if a line of it failed; otherwise nothing is open and nothing is held."""
        if not self._is_whole:
            self._rewrite()
            self._is_whole = True

    def _rewrite(self) -> None:
        table = [self._columns, *([row.get(name) for name in self._columns] for row in self._rows)]
        replace_file(self._path, _format_lines(table))


def _format_lines(table: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode("utf-8")
