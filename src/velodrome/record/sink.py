"""The protocol of everything that is fed from the journal, and the plain values that its rows are made of.

Rows are plain before any sink sees them: strings, booleans, integers, finite floats and `None`. A sink
therefore never meets a live tensor, never waits for a device, and treats `None` (a NaN or an infinity) as a
gap.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Protocol

__all__ = ["Sink", "make_plain", "say_on_stderr"]

_LONGEST_REPR = 200


class Sink(Protocol):
    """Takes the rows of a journal, one by one; `row["kind"]` is "step", "epoch", or "evaluation" for one within the training loop."""

    def write(self, row: Mapping[str, object]) -> None:
        """Take one row; whatever is raised switches this sink off, and training goes on."""
        ...

    def close(self) -> None:
        """Bring what is still held to its place."""
        ...


def make_plain(value: Any) -> Any:  # Any: metrics come from user code and are of any type
    """Return the value as strict JSON can hold it: NaN and infinity become None, a 0-d tensor a number.

    >>> make_plain({"loss": float("nan"), "path": PurePath("a/b"), "counts": (1, 2)})
    {'loss': None, 'path': 'a/b', 'counts': [1, 2]}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # A lone surrogate (a file name that was not UTF-8) cannot be encoded, so it is spelled out.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {make_plain(str(key)): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, PurePath):
        return make_plain(value.as_posix())
    # numpy and torch scalars, without importing either; `item` fails on anything with more than one element.
    item = getattr(value, "item", None)
    if callable(item):
        try:
            number = item()
        except (ValueError, RuntimeError, TypeError):
            number = None
        if isinstance(number, bool | int | float | str):
            return make_plain(number)
    return make_plain(repr(value)[:_LONGEST_REPR])


def say_on_stderr(line: str) -> None:
    """Print a line for people on standard error; a stream that is gone is no reason to fail."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (
        OSError,
        ValueError,
    ):  # UnicodeEncodeError is a ValueError, but stderr escapes what it cannot encode
        return
