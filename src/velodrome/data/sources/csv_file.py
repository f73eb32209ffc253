"""A CSV file as named columns of text, with the place of every cell for messages."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from velodrome.errors import DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Table", "read_table"]

_MISSING = {"", "nan", "na", "n/a", "null", "none", "?", "-"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under names."""

    path: Path
    names: list[str]
    has_names: bool
    """whether the names were in the file; otherwise they are "column 0", "column 1", ..."""
    rows: list[list[str]]
    lines: list[int]
    """the line of the file on which each row ends, counted from 1"""

    def rows_at(self, indices: Sequence[int]) -> Table:
        """Return a table with only these rows."""
        return replace(self, rows=[self.rows[i] for i in indices], lines=[self.lines[i] for i in indices])

    def with_names(self, names: list[str]) -> Table:
        """Return the same rows under other names."""
        return replace(self, names=names)

    def column_name(self, column: str | int) -> str:
        """Return the name of a column given by name or position."""
        if isinstance(column, str):
            return self.names[self._position(column)]
        if not -len(self.names) <= column < len(self.names):
            raise DataError(
                f"{self.path} has no column {column}: it has {len(self.names)}, 0 to {len(self.names) - 1}. Names: {', '.join(self.names)}."
            )
        return self.names[column]

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column; an empty one is refused."""
        position = self._position(name)
        cells = [row[position].strip() for row in self.rows]
        missing = [row for row, cell in enumerate(cells) if cell.lower() in _MISSING]
        if missing:
            raise DataError(
                f"{self.place(missing[0], name)} is {cells[missing[0]] or 'empty'!r}; {len(missing)} of {len(cells)} cells of this column hold no value. "
                f"Every cell must: fill them in, or drop these rows.",
                path=self.path,
                line=self.lines[missing[0]],
                count=len(missing),
            )
        return cells

    def numbers(self, name: str) -> numpy.ndarray:
        """Return the cells of a column as float64; what is no finite number is refused."""
        cells = self.texts(name)
        bad = [row for row, cell in enumerate(cells) if not _is_number(cell)]
        if bad:
            raise DataError(
                f"{self.place(bad[0], name)} is {cells[bad[0]]!r}, which is no number; {len(bad)} of {len(cells)} cells of this column are none. "
                f"Correct them, or name the column in categorical=[{name!r}].",
                path=self.path,
                line=self.lines[bad[0]],
                count=len(bad),
            )
        return numpy.array([float(cell) for cell in cells], dtype=numpy.float64)

    def is_numeric(self, name: str) -> bool:
        """Return whether every cell of a column is a number."""
        return all(_is_number(cell) for cell in self.texts(name))

    def place(self, row: int, name: str) -> str:
        """Return where a cell is, for a message."""
        return f"{self.path}, line {self.lines[row]}, column {name!r}"

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"{self.path} has no column {name!r}. {nearest(name, self.names)}", path=self.path)
        return self.names.index(name)


def read_table(path: str | Path, *, header: bool | None = None) -> Table:
    """Read a CSV file whole.

    Args:
        path: UTF-8, with or without a byte order mark.
        header: whether the first row holds names; None finds out.
    Raises:
        DataError: missing, unreadable, empty, or rows of different lengths.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            numbered = [(row, reader.line_num) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give the path of a CSV file.", path=path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a CSV file in UTF-8: {error}. Check the path and the encoding.", path=path
        ) from error
    if not numbered:
        raise DataError(f"{path} is empty. It must hold at least one row.", path=path)
    first = [cell.strip() for cell in numbered[0][0]]
    has_names = _looks_like_names(first) if header is None else header
    body = numbered[1:] if has_names else numbered
    if not body:
        raise DataError(
            f"{path} holds names of {len(first)} columns and 0 rows. It must hold at least one row.", path=path
        )
    for row, line in numbered:
        if len(row) != len(first):
            raise DataError(
                f"{path}, line {line} has {len(row)} cells, the first row has {len(first)}. All rows must have the same number.",
                path=path,
                line=line,
            )
    if has_names and len(set(first)) < len(first):
        twice = next(name for name in first if first.count(name) > 1)
        raise DataError(f"{path} has two columns called {twice!r}. Rename one.", path=path)
    names = first if has_names else [f"column {index}" for index in range(len(first))]
    return Table(
        path=path, names=names, has_names=has_names, rows=[row for row, _ in body], lines=[line for _, line in body]
    )


def _looks_like_names(first: list[str]) -> bool:
    """A first row without a single number is a row of names."""
    return not any(_is_number(cell) or cell.lower() in _MISSING for cell in first)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
