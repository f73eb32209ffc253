"""A CSV file as named columns of text, with the place of every cell for messages."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Table", "is_number", "read_table"]

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
        if isinstance(column, bool) or not isinstance(column, int):
            raise ArgumentError(
                f"{column!r} is no column. A column is given by its name or by its position, 0 the first."
            )
        if not -len(self.names) <= column < len(self.names):
            raise DataError(
                f"{self.path} has no column {column}: it has {len(self.names)}, 0 to {len(self.names) - 1}. Names: {', '.join(self.names)}."
            )
        return self.names[column]

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column; an empty one is refused."""
        position = self._position(name)
        cells = [row[position].strip() for row in self.rows]
        missing = [row for row, cell in enumerate(cells) if _is_missing(cell)]
        if missing:
            raise DataError(
                f"{self.place(missing[0], name)} is {repr(cells[missing[0]]) if cells[missing[0]] else 'empty'}; {len(missing)} of {len(cells)} cells of this column hold no value. "
                f"Every cell must: fill them in, or drop these rows.",
                path=self.path,
                line=self.lines[missing[0]],
                count=len(missing),
            )
        return cells

    def numbers(self, name: str) -> numpy.ndarray:
        """Return the cells of a column as float64; what is no finite number is refused."""
        cells = self.texts(name)
        bad = [row for row, cell in enumerate(cells) if not is_number(cell)]
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
        return all(is_number(cell) for cell in self.texts(name))

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
        DataError: missing, unreadable, empty, or rows of different lengths; or nobody can tell whether it has a header.
    """
    path = Path(path)
    numbered = _read_rows(path)
    first = [cell.strip() for cell in numbered[0][0]]
    separator = next((mark for mark in ";\t|" if len(first) == 1 and mark in first[0]), None)
    if separator:
        raise DataError(
            f"{path} has one column ({first[0][:40]}) and seems to be separated by {separator!r}. Save it with commas between cells and points in numbers.",
            path=path,
        )
    for row, line in numbered:
        if len(row) != len(first):
            raise DataError(
                f"{path}, line {line} has {len(row)} cells, the first row has {len(first)}. All rows must have the same number: "
                f"correct this one.",
                path=path,
                line=line,
            )
    has_names = _find_header(path, [row for row, _ in numbered]) if header is None else header
    body = numbered[1:] if has_names else numbered
    if not body:
        raise DataError(
            f"{path} holds names of {len(first)} columns and 0 rows. It must hold at least one row.", path=path
        )
    # A column without a name, such as an index that pandas wrote, is called by its position.
    names = [(name if has_names else "") or f"column {index}" for index, name in enumerate(first)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has two columns called {twice!r}. Rename one.", path=path)
    return Table(
        path=path, names=names, has_names=has_names, rows=[row for row, _ in body], lines=[line for _, line in body]
    )


def _read_rows(path: Path) -> list[tuple[list[str], int]]:
    """Return every row that is not blank, with the line on which it ends."""
    if "\0" in str(path):
        raise DataError(f"{str(path)!r} is no path: it holds a null character. Give the path of a CSV file.", path=path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for ever
        raise DataError(f"{path} is no regular file. Give the path of a CSV file.", path=path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            numbered, start = [], 1
            try:
                for row in reader:
                    # A row of empty cells is none of the blank ones: left out in silence, it would shift predictions.
                    if len(row) > 1 or any(map(str.strip, row)):
                        numbered.append((row, reader.line_num))
                    start = reader.line_num + 1
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {start} begins a row that is not CSV: {error}. Look for an unclosed quotation mark there.",
                    path=path,
                    line=start,
                ) from error
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give the path of a CSV file.", path=path) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. Give the path of a CSV file.", path=path
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} ({error.reason}). Save it as UTF-8.", path=path
        ) from error
    if not numbered:
        raise DataError(f"{path} is empty. It must hold at least one row.", path=path)
    return numbered


def _find_header(path: Path, rows: list[list[str]]) -> bool:
    """Return whether the first row holds names: it does when one of its cells is a word and the cells below are numbers.

    Raises:
        DataError: it holds both words above numbers and numbers, or the table has no numbers at all.
    """
    first, body = rows[0], rows[1:]
    num_numbers = sum(is_number(cell) for cell in first)
    is_word_above_numbers = any(
        not _is_missing(cell) and not is_number(cell) and _holds_numbers([row[column] for row in body])
        for column, cell in enumerate(first)
    )
    if is_word_above_numbers and not num_numbers:
        return True
    if not is_word_above_numbers and num_numbers:
        return False
    if not body:  # words and nothing below them
        return True
    reason = (
        "mixes numbers with words above numbers" if num_numbers else "holds no number, and neither do the rows below it"
    )
    raise DataError(
        f"{path}: the first row ({', '.join(first[:5])}) {reason}. It may hold names or values: "
        f"say which with header=True or header=False (data.header=true in a recipe).",
        path=path,
        line=1,
    )


def _holds_numbers(cells: list[str]) -> bool:
    """Most of them: a bad cell further down shall be named as one, not make the names above look like values."""
    filled = [cell for cell in cells if not _is_missing(cell)]
    return 2 * sum(map(is_number, filled)) > len(filled)


def _is_missing(cell: str) -> bool:
    """Return whether a cell says that there is no value."""
    return cell.strip().lower() in _MISSING


def is_number(cell: str) -> bool:
    """Return whether a cell is a finite number."""
    try:
        return "_" not in cell and math.isfinite(
            float(cell)
        )  # Python reads 1_000 as a number; CSV files do not mean it
    except ValueError:
        return False
