"""What transforms are told: numbers of any kind, sizes and ranges; refused with the value, the rule and what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, get_args

from velodrome.errors import ArgumentError, nearest

__all__ = [
    "FILL", "check_choice", "check_fraction_range", "check_number", "check_numbers", "check_probability", "check_range", "check_size",
    "check_whole",
    "shown",
]  # fmt: skip

_TOO_MANY = 1 << 31  # pixels, classes: torch counts with 64 bits, and multiplies such numbers
FILL = "a colour", "It must be a number, in the units of the images."


def check_whole(name: str, value: Any, what: str, *, least: int) -> int:
    """Return a whole number: Python's, NumPy's or a tensor's without dimensions.

    Args:
        name: of the argument.
        value: that was given.
        what: it ought to be, such as "a number of pixels".
        least: that it may be.
    Raises:
        ArgumentError: it is none, or smaller.
    """
    try:
        if _is_bool(value) or getattr(value, "ndim", 0):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number < _TOO_MANY:
        most = ", below 2**31" if number is not None and number >= _TOO_MANY else ""
        raise ArgumentError(
            f"{name}={shown(value)} is not {what}. It must be a whole number of at least {least}{most}."
        )
    return number


def check_number(
    name: str, value: Any, what: str, rule: str, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    """Return a finite number; a whole one stays whole.

    Args:
        name, value, what: see `check_whole`.
        rule: the end of the message, such as "It must be a number above 0."
        least: that it may be.
        above: what it must be larger than.
    Raises:
        ArgumentError: it is none, NaN, infinite or too small.
    """
    number = _number(value)
    if number is None or not least <= number or not above < number:
        raise ArgumentError(f"{name}={shown(value)} is not {what}. {rule}")
    return number


def check_numbers(name: str, value: Any, what: str, rule: str) -> tuple[float, ...]:
    """Return one number, or several, as a tuple of at least one.

    Raises:
        ArgumentError: something of it is no finite number, or it is empty.
    """
    number = _number(value)
    numbers = (number,) if number is not None else tuple(_number(part) for part in _parts(value))
    if not numbers or None in numbers:
        raise ArgumentError(f"{name}={shown(value)} is not {what}. {rule}")
    return tuple(float(part) for part in numbers if part is not None)


def check_range(
    name: str, value: Any, what: str, rule: str, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> tuple[float, float]:  # fmt: skip
    """Return two numbers, the smaller first.

    Raises:
        ArgumentError: it is anything else, or goes beyond the bounds.
    """
    numbers = [_number(part) for part in _parts(value)]
    low, high = numbers if len(numbers) == 2 else (None, None)
    if low is None or high is None or not (least <= low <= high <= most and above < low):
        raise ArgumentError(f"{name}={shown(value)} are not {what}. {rule}")
    return low, high


def check_fraction_range(name: str, value: Any, what: str, *, above: float = -math.inf) -> tuple[float, float]:
    """Return two fractions, the smaller first.

    Raises:
        ArgumentError: it is anything else.
    """
    rule = f"They must be two numbers from 0{' (not 0 itself)' if above == 0 else ''} to 1, the smaller first."
    return check_range(name, value, what, rule, least=0, above=above, most=1)


def check_size(name: str, value: Any) -> tuple[int, int]:
    """Return height and width; one number is both.

    Raises:
        ArgumentError: it is neither a whole number nor two, or one is below 1.
    """
    parts = (value, value) if _number(value) is not None else _parts(value)
    try:
        height, width = (check_whole(name, part, "", least=1) for part in parts)
    except (ArgumentError, ValueError):
        raise ArgumentError(
            f"{name}={shown(value)} is not the size of an image. Both sides must be whole numbers of at least 1: give one number, or (height, width)."
        ) from None
    return height, width


def check_probability(name: str, value: Any) -> float:
    """Return a probability.

    Raises:
        ArgumentError: the value is no number from 0 to 1.
    """
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ArgumentError(f"{name}={shown(value)} is not a probability. It must be a number from 0 to 1.")
    return number


def check_choice(name: str, value: Any, choices: Any) -> Any:
    """Return one of the texts of a `Literal`.

    Raises:
        ArgumentError: it is another one; the nearest is shown.
    """
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(f"{name}={shown(value)} is not known. {nearest(str(value), known)}")
    return value


def _number(value: Any) -> float | None:
    """Return a finite number of Python's, whatever kind it was given as; None for anything else."""
    if isinstance(value, (str, bytes)) or _is_bool(value) or getattr(value, "ndim", 0):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        try:
            number = float(value)  # SYNC: none in a run, arguments are read when a transform is made
        except (TypeError, ValueError, RuntimeError):
            return None
    try:
        return number if math.isfinite(number) else None
    except OverflowError:  # a whole number that no float holds
        return None


def shown(value: Any) -> str:
    """Return how a value is written, cut to a line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_bool(value: Any) -> bool:
    """Return whether it is a truth value: Python's, NumPy's or a tensor's."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _parts(value: Any) -> tuple[Any, ...]:
    """Return the parts of a sequence, an array or a tensor; none of anything else."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) != 1 or not isinstance(value, Iterable):
        return ()
    return tuple(value)
