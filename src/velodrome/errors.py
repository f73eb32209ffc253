"""Every error that Velodrome raises on purpose.

```text
VelodromeError                    exit code 1
├── RecipeError     (ValueError)            2   a recipe, an override or a command line is wrong
├── ArgumentError   (ValueError)            2   an argument of a Python call is wrong
├── DataError       (ValueError)            2   the data cannot be trained on: empty, NaN, shape, dtype, labels
│   └── FetchError                          1   a sample or batch could not be fetched: the dataset raised, a worker died or hangs
├── CheckpointError                         3   a checkpoint is missing, torn, or does not fit the model
├── WorldError                              1   processes disagree or died
├── NumericsError   (ArithmeticError)       1   a loss or gradient became NaN or infinite
├── OutOfMemoryError (MemoryError)          1   a batch does not fit into the memory of the device
└── RefusedError                            3   going on could lose something; nothing was changed
```

A message has one sentence with the value, one with the rule and its numbers, and one with what to do; the place
it came from, where a file or flag gave it, stands in brackets at the end. The same facts are in the fields.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "FetchError",
    "NumericsError",
    "OutOfMemoryError",
    "RecipeError",
    "RefusedError",
    "VelodromeError",
    "WorldError",
]


class VelodromeError(Exception):
    """The root of the tree: catching it catches everything that Velodrome raises on purpose.

    Args:
        message: the sentences that the user reads.
        fields: the same facts as data (`path`, `step`, `rank`, `index`, ...); they become attributes.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __getattr__(self, name: str) -> object:
        """Return the field of that name."""
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")


class RecipeError(VelodromeError, ValueError):
    """A recipe, an override or a command line is wrong; `problems` lists every one of them."""

    exit_code = 2


class ArgumentError(VelodromeError, ValueError):
    """An argument of a Python call is wrong."""

    exit_code = 2


class DataError(VelodromeError, ValueError):
    """The data cannot be trained on."""

    exit_code = 2


class FetchError(DataError):
    """A sample or a batch could not be fetched: user code raised, or a worker process died or hangs."""

    exit_code = 1


class CheckpointError(VelodromeError):
    """A checkpoint is missing, torn, or does not fit the model."""

    exit_code = 3


class WorldError(VelodromeError):
    """The processes of a run disagree, or one of them died."""


class NumericsError(VelodromeError, ArithmeticError):
    """A loss or a gradient became NaN or infinite."""


class OutOfMemoryError(VelodromeError, MemoryError):
    """A batch does not fit into the memory of the device; the allocator's own error is its `__cause__`."""


class RefusedError(VelodromeError):
    """Going on could lose something, so nothing was done."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the closest known names, for the end of an "unknown name" message.

    >>> nearest("cross_entropi", ["cross_entropy", "mse"])
    'Did you mean "cross_entropy"? Known: cross_entropy, mse.'
    >>> nearest("zzz", ["mse", "l1"])
    'Known: l1, mse.'
    """
    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if not close and len(name) > 1:  # "acc" for "accuracy"
        close = [known for known in names if known.startswith(name.lower())][:1]
    listing = f"Known: {', '.join(names)}."
    return f'Did you mean "{close[0]}"? {listing}' if close else listing


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """Return the divisors of a number on both sides of one that is none; the number itself where that is too large.

    >>> nearest_divisors(250, 24), nearest_divisors(8, 20)
    ([10, 25], [8])
    """
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return [max(each for each in divisors if each < wanted), *(each for each in divisors if each > wanted)][:2]
