"""What a verb says: lines for people, or one JSON object for programs; and what happens when nobody can read them."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Where lines go: stdout; with `--json` stderr, because stdout then holds the answer alone; nowhere with `-q`.

    A stream that is closed or full loses lines in silence. Only an answer that was asked for is an error when it is lost.
    """

    as_json: bool = False
    quiet: bool = False
    answer_matters: bool = True
    """False for a verb whose work is done once its files are written: a lost answer does not change its exit code"""
    _lost: list[OSError | ValueError] = field(default_factory=list, init=False)
    """why news did not arrive where the answer is to go: the stream is silenced since, and takes an answer without a word"""

    def say(self, line: str = "") -> None:
        """Show a line of news."""
        if not self.quiet:
            error = write_quietly(line, sys.stderr if self.as_json else sys.stdout)
            if error is not None and not self.as_json:
                self._lost.append(error)

    def say_data(self, line: str) -> None:
        """Show a line about the data: where they came from, and what is wrong with them."""
        self.say(line if line.startswith("warning: ") else f"Data: {line}")

    def answer(self, lines: str, data: Mapping[str, object]) -> None:
        """Show what was asked for: the lines, or with `--json` the data. Not silenced by `-q`.

        Raises:
            typer.Exit: with code 1, when it matters and could not be written; stderr says why.
        """
        text = to_json(data) if self.as_json else lines
        if not self.answer_matters:
            write_quietly(text, sys.stdout)
            return
        try:
            if self._lost:
                raise self._lost[0]
            _write(text, sys.stdout)
        except BrokenPipeError:
            silence(sys.stdout)  # `velodrome recipes show NAME | head`: the reader has seen enough
        except (OSError, ValueError) as error:
            silence(sys.stdout)
            write_quietly(f"Error: The answer could not be written: {why(error)}.", sys.stderr)
            raise typer.Exit(1) from error


def write_quietly(line: str, stream: TextIO | None) -> OSError | ValueError | None:
    """Write a line at once; a stream that is closed, full or at its end loses it, and everything after it: returns why."""
    try:
        _write(line, stream)
    except (OSError, ValueError) as error:
        silence(stream)
        return error
    return None


def silence(stream: TextIO | None) -> None:
    """Send the rest of a stream that failed to nowhere: what it still holds would fail again when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]
        os.close(nowhere)


def why(error: OSError | ValueError) -> str:
    """Return what an operating system's error says, without its number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def to_json(data: Mapping[str, object]) -> str:
    """Return one JSON object; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=True, default=str)


def table(rows: list[tuple[str, str]]) -> str:
    """Return two columns, the first one as wide as its widest entry."""
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:<{width}}  {right}".rstrip() for left, right in rows)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of as many cells, each column as wide as its widest entry."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def show_metrics(metrics: Mapping[str, object]) -> str:
    """Return `val/loss 0.3412, val/accuracy 0.8790` for the numbers among the metrics."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return ", ".join(
        f"{key} {value:.4g}" if abs(value) < 1e-3 else f"{key} {value:.4f}" for key, value in numbers.items()
    )


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed before we began; print() would write to another stream, or say nothing
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    stream.write(text + "\n")
    stream.flush()


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
