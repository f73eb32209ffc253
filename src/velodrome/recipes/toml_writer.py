"""Writes TOML: the part of the language that a recipe uses.

Twenty lines of our own rather than a dependency: the standard library reads TOML and does not write it, and recipes
hold only tables of strings, numbers, truth values, lists and small inline tables.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a document that `tomllib` reads back as the same tables."""
    blocks = []
    for name, table in tables.items():
        lines = [f"[{_key(name)}]"]
        lines += [f"{_key(key)} = {toml_value(value)}" for key, value in table.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def toml_value(value: object) -> str:
    """Return one value as TOML.

    >>> toml_value([1, True, "a"])
    '[1, true, "a"]'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isnan(value):
            return "nan"
        case float():
            return repr(value)  # "inf" and "1e-05" are TOML as they stand
        case str():
            return _string(value)
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_key(str(k))} = {toml_value(v)}" for k, v in value.items()) + "}"
    raise RecipeError(
        f"TOML has no {type(value).__name__}. A recipe holds strings, numbers, booleans, lists and tables of these.",
        value=value,
    )


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped; surrogates cannot be written at all.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
