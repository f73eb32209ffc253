"""`key=value` on the command line: the value is TOML, and a bare word is a string.

```text
optimizer.lr=0.01   optimizer.name=sgd   train.metrics=["accuracy","top5"]   model.sizes=[784,64,10]
```
"""

from __future__ import annotations

import copy
import tomllib
from typing import TYPE_CHECKING, Any

from velodrome.recipes.problems import Origins, Problem
from velodrome.recipes.schema import DURATIONS, KNOWN_FIELDS, NAMED_TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEEPEST = 50  # levels of tables and lists: more than any callable takes, fewer than Python's recursion bears
_OPENS_TOML = ("[", "{", '"', "'")


def parse_override(text: str) -> tuple[str, object] | Problem:
    """Split one `key=value` and read its value.

    >>> parse_override("optimizer.lr=1e-2")
    ('optimizer.lr', 0.01)
    >>> parse_override("optimizer.name=sgd")
    ('optimizer.name', 'sgd')
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        return _mistake(text, "is not key=value. Write it as optimizer.lr=0.01.")
    table, dot, field = key.partition(".")
    if not dot or not table or not all(field.split(".")):
        homes = [f"{name}.{key}" for name, fields in KNOWN_FIELDS.items() if name and key in fields]
        hint = (
            f"Did you mean {' or '.join(filter(None, [', '.join(homes[:-1]), homes[-1]]))}?"
            if homes
            else "Write it as table.field=value."
        )
        return _mistake(key, f"does not name a table and a field. {hint}", value)
    try:
        read = tomllib.loads(f"value = {value}")
        if is_nested_too_deeply(read) or field.count(".") >= DEEPEST:
            raise RecursionError
    except RecursionError:
        return _mistake(
            key if len(key) <= 60 else f"{key[:57]}...", f"is nested more than {DEEPEST} levels deep. Use fewer.", value
        )
    except ValueError as error:  # TOMLDecodeError is one; so is that of a number of thousands of digits
        if value.startswith(_OPENS_TOML):
            return _mistake(key, f"is not a TOML value ({error}). Quote it for your shell.", value)
        return key, value
    if len(read) != 1 or not isinstance(read["value"], (str, int, float, bool, list, dict)):
        return key, value  # a date, or a value that smuggled in a line break: a plain string
    return key, read["value"]


def is_nested_too_deeply(value: object) -> bool:
    """Return whether tables and lists lie in each other deeper than a recipe may have them."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)


def apply_overrides(
    tables: Mapping[str, Any], overrides: Iterable[str], *, file: str
) -> tuple[dict[str, Any], Origins, list[Problem]]:
    """Return the tables with the overrides in place, who gave what, and the overrides that cannot be read.

    Two rules keep a short override from leaving a contradiction behind: a new length (`train.steps=100`) takes the
    place of the file's epochs or seconds, and a new `name` for a table (of an average: a new `kind`) drops the
    arguments that the file gave to the old one (an optimizer keeps its `lr`).
    """
    result: dict[str, Any] = copy.deepcopy(dict(tables))
    given: dict[str, object] = {}
    problems: list[Problem] = []
    for text in overrides:
        parsed = parse_override(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            given[parsed[0]] = parsed[1]
    _clear_what_is_replaced(result, given)
    for key, value in given.items():
        *path, last = key.split(".")
        place: Any = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                problems.append(_mistake(key, f"goes into {part}, which is not a table.", value))
                break
        else:
            place[last] = value
    return result, Origins(file, given), problems


def _clear_what_is_replaced(tables: dict[str, Any], given: Mapping[str, object]) -> None:
    train = tables.get("train")
    if isinstance(train, dict) and any(f"train.{name}" in given for name in DURATIONS):
        for name in DURATIONS:
            train.pop(name, None)
    for name, key in (*((name, "name") for name in NAMED_TABLES), ("ema", "kind")):
        table = tables.get(name)
        new = given.get(f"{name}.{key}")
        if isinstance(table, dict) and new is not None and new != table.get(key):
            tables[name] = {"lr": table["lr"]} if name == "optimizer" and "lr" in table else {}


def _mistake(key: str, rule: str, value: object = None) -> Problem:
    return Problem(field=key, rule=rule, value=value, has_value=value is not None, origin="command line")
