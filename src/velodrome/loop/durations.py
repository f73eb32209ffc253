"""Durations: `"100 steps"`, `"every epoch"`, `"10 minutes"`, wherever something happens every so often."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from velodrome.errors import ArgumentError, nearest

__all__ = ["Duration", "Unit", "parse_duration"]

Unit = Literal["epochs", "steps", "samples", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "step": ("steps", 1),
    "sample": ("samples", 1),
    "second": ("seconds", 1),
    "sec": ("seconds", 1),
    "s": ("seconds", 1),
    "minute": ("seconds", 60),
    "min": ("seconds", 60),
    "m": ("seconds", 60),
    "hour": ("seconds", 3600),
    "h": ("seconds", 3600),
    "day": ("seconds", 86400),
}
_PATTERN = re.compile(r"^(?:every\s+)?(?:(?P<amount>[0-9][0-9_,]*(?:\.[0-9]+)?)\s*)?(?P<unit>[a-z]+)$")


@dataclass(frozen=True)
class Duration:
    """An amount of training: so many epochs, steps, samples or seconds."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        amount = int(self.amount) if float(self.amount).is_integer() else self.amount
        return f"{amount} {self.unit}"


def parse_duration(text: str | Duration, *, name: str = "duration") -> Duration:
    """Read a duration written in words.

    >>> parse_duration("every 100 steps")
    Duration(amount=100, unit='steps')
    >>> parse_duration("10 minutes")
    Duration(amount=600, unit='seconds')
    >>> parse_duration("epoch")
    Duration(amount=1, unit='epochs')

    Args:
        text: an amount and a unit, "every" in front if you like; the amount is 1 when left out.
        name: the argument's name, for the error.
    Raises:
        ArgumentError: no duration can be read from it, or it is not positive; whole units want whole numbers.
    """
    if isinstance(text, Duration):
        return _checked(text.amount, text.unit, f"{name}={text!r}")
    match = _PATTERN.match(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise ArgumentError(
            f'{name}={text!r} is not a duration. Write an amount and a unit, such as "5 epochs", "every 100 steps", '
            f'"4096 samples" or "10 minutes".'
        )
    word = match["unit"]
    known = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    if known is None:
        raise ArgumentError(
            f"{name}={text!r} has the unknown unit {word!r}. {nearest(word, [f'{u}s' for u in _UNITS if len(u) > 3])}"
        )
    unit, factor = known
    amount = float((match["amount"] or "1").replace("_", "").replace(",", "")) * factor
    return _checked(amount, unit, f"{name}={text!r}")


def _checked(amount: float, unit: Unit, given: str) -> Duration:
    is_whole = float(amount).is_integer()
    if not math.isfinite(amount) or amount <= 0 or (unit != "seconds" and not is_whole):
        raise ArgumentError(
            f"{given} is {amount:g} {unit}. It must be positive{'' if unit == 'seconds' else ' and whole'}."
        )
    return Duration(int(amount) if is_whole else amount, unit)
