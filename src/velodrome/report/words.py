"""How numbers, times and sizes are written in reports."""

from __future__ import annotations

import json
import math
from datetime import datetime

__all__ = ["as_number", "show_bytes", "show_change", "show_duration", "show_number", "show_time", "show_value"]


def as_number(value: object) -> float:
    """Return a number; NaN for whatever is none, a truth value included."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return math.nan
    return math.nan


def show_number(value: object) -> str:
    """Return `0.3412`, `12,345`, `1.2e-05`, or "not a number" for what was not finite.

    >>> show_number(0.00001234), show_number(45000), show_number(None)
    ('1.234e-05', '45,000', 'not a number')
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return f"{value:,}"
    number = as_number(value)
    if not math.isfinite(number):
        return "not a number"
    if number == 0 or 1e-3 <= abs(number) < 1e5:
        return f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"
    return f"{number:.4g}"


def show_value(value: object) -> str:
    """Return a value of a recipe or a record as TOML and JSON write it; text as it is."""
    if isinstance(value, str):
        return value if value else '""'
    return json.dumps(value, ensure_ascii=False, default=str)


def show_duration(seconds: object) -> str:
    """Return `1.25 s`, `3 min 05 s` or `2 h 04 min`; nothing for what is no time."""
    number = as_number(seconds)
    if not math.isfinite(number) or number < 0:
        return ""
    if number < 120:
        return f"{number:.3g} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def show_bytes(number: int) -> str:
    """Return a size in the unit that suits it.

    >>> show_bytes(2_500_000)
    '2.5 MB'
    """
    size = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError


def show_time(text: object) -> str:
    """Return `2026-11-22 05:33:39 UTC` for a time as records have it; another text as it is."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return "" if text is None else str(text)
    zone = time.strftime("%Z") if time.tzinfo is not None else ""
    return f"{time:%Y-%m-%d %H:%M:%S} {zone}".rstrip()


def show_change(before: object, after: object) -> str:
    """Return `0.1 -> 0.2`; what was not there is said."""
    return f"{_or_none(before)} → {_or_none(after)}"


def _or_none(value: object) -> str:
    return "(none)" if value is None else show_value(value)
