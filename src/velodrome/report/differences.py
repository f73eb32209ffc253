"""What differs between tables of settings: flat names, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Difference", "find_differences", "flatten"]

_DEEPEST = 50


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that is not the same everywhere; a table that lacks it has None there."""

    name: str
    values: tuple[Any, ...]


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables under names with dots; a list is one value.

    >>> flatten({"optimizer": {"name": "sgd", "groups": [{"lr": 1}]}, "seed": 0})
    {'optimizer.name': 'sgd', 'optimizer.groups': [{'lr': 1}], 'seed': 0}
    """
    return dict(_walk(table, "", _DEEPEST))


def find_differences(tables: Sequence[Mapping[str, Any] | None]) -> list[Difference]:
    """Return the settings that are not equal in all tables, in the order in which they stand there; None is a table that nobody knows.

    >>> [(each.name, each.values) for each in find_differences([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])]
    [('lr', (0.1, 0.2))]
    """
    flat = [None if table is None else flatten(table) for table in tables]
    known = [table for table in flat if table is not None]
    names = dict.fromkeys(name for table in known for name in table)
    return [
        Difference(name=name, values=tuple(None if table is None else table.get(name) for table in flat))
        for name in names
        if any(_differ(table.get(name), known[0].get(name)) for table in known[1:])
    ]


def _walk(value: Mapping[str, Any], prefix: str, levels: int) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(item, dict) and item and levels:
            yield from _walk(item, name, levels - 1)
        else:
            yield name, _cut_off(item, _DEEPEST)


def _cut_off(value: Any, levels: int) -> Any:
    """Return a value without what is nested so deep that it could be neither written nor shown."""
    if not isinstance(value, (dict, list)):
        return value
    if not levels:
        return "…"
    if isinstance(value, list):
        return [_cut_off(item, levels - 1) for item in value]
    return {key: _cut_off(item, levels - 1) for key, item in value.items()}


def _differ(one: Any, other: Any) -> bool:
    return (type(one) is not type(other) and not _are_numbers(one, other)) or one != other


def _are_numbers(one: Any, other: Any) -> bool:
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
