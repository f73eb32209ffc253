"""What is wrong with a recipe, collected so that all of it is reported in one RecipeError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from velodrome.errors import RecipeError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import ValidationError

_LONGEST_VALUE_SHOWN = 60
_MOST_SHOWN = 100  # of a file that is no recipe at all, thousands could be found
# Where pydantic speaks of Python's types, a recipe's author thinks in TOML's.
_WHOLE, _LIST = "must be a whole number.", 'must be a list, such as ["accuracy"].'
_RULES = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "tuple_type": _LIST,
    "float_type": "must be a number.",
    "string_type": "must be a text in quotes.",
    "bool_type": "must be true or false.",
    "model_type": "must be a table.",
    "model_attributes_type": "must be a table.",
    "dict_type": "must be a table.",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake: where it stands, what was given, and the rule that it breaks."""

    field: str  # dotted path: "optimizer.lr"
    rule: str  # the rest of the sentence after "field=value ", or whole sentences
    value: object = None
    has_value: bool = True  # False when the field is missing
    origin: str = "recipe"  # "run.toml" or "command line"
    cause: BaseException | None = None  # what the user's own code raised

    def __str__(self) -> str:
        subject = f"{self.field}={_show(self.value)}" if self.has_value else self.field
        return f"{subject} {self.rule} [{self.origin}: {self.field}]"


class Origins:
    """Which file or flag gave each field, for the bracket at the end of a message."""

    def __init__(self, default: str, overridden: Iterable[str] = ()) -> None:
        self.default = default
        self.overridden = frozenset(overridden)

    def of(self, field: str) -> str:
        """Return "command line" for an overridden field (or one inside it), else the file's name."""
        parents = (field, *(field[:i] for i, letter in enumerate(field) if letter == "."))
        return "command line" if self.overridden.intersection(parents) else self.default


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one RecipeError for all problems, each once; do nothing when there are none.

    Raises:
        RecipeError: `problems` holds the first hundred; the message has one line for each.
    """
    unique = {(p.field, p.rule): p for p in problems}
    found = tuple(unique.values())[:_MOST_SHOWN]
    if not found:
        return
    cause = next((problem.cause for problem in found if problem.cause is not None), None)
    if len(found) == 1:
        raise RecipeError(str(found[0]), problems=found) from cause
    listing = "\n".join(f"  - {problem}" for problem in found)
    more = f"\n  and {len(unique) - len(found)} more" if len(unique) > len(found) else ""
    raise RecipeError(f"{len(unique)} problems in the recipe:\n{listing}{more}", problems=found) from cause


def from_validation(
    error: ValidationError, *, origins: Origins, known: Mapping[str, Iterable[str]], prefix: str = ""
) -> list[Problem]:
    """Turn pydantic's findings into ours: dotted paths, "must be ..." rules and nearest names.

    Args:
        error: what pydantic raised.
        origins: who gave which field.
        known: the field names of each table ("" is the top level), for unknown names.
        prefix: the table that the error is about, when only a part of the recipe was validated.
    """
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        loc = item["loc"]
        loc = (prefix, *loc) if prefix else loc
        # Behind a field's name come list positions, and pydantic's names for the branches of a union.
        loc = (*loc[:2], *(part for part in loc[2:] if isinstance(part, int)))
        path = ".".join(str(part) for part in loc)
        table, _, last = path.rpartition(".")
        value, has_value = item["input"], True
        if item["type"] == "extra_forbidden":
            rule = unknown_field_rule(table, last, known.get(table, ()))
        elif item["type"] == "missing":
            rule, has_value = "is missing and has no default.", False
        elif item["type"] == "value_error":
            rule = item["msg"].removeprefix("Value error, ")
            has_value = bool(item["loc"]) and not isinstance(value, dict)
        else:
            rule = _RULES.get(item["type"]) or item["msg"].replace("Input should be", "must be", 1).rstrip(".") + "."
        if problems and problems[-1].field == path:  # the next branch of a union
            rule = f"{problems.pop().rule[:-1]} or {rule.removeprefix('must be ')}"
        problems.append(Problem(field=path, rule=rule, value=value, has_value=has_value, origin=origins.of(path)))
    return problems


def unknown_field_rule(table: str, name: str, known: Iterable[str]) -> str:
    """Return the rule for a name that a table does not have."""
    if not table:
        return f"is no part of a recipe, which holds tables of these names only. {nearest(name, known)}"
    return f"is not a field of [{table}]. {nearest(name, known)}"


def _show(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    if isinstance(value, bool):
        text = str(value).lower()
    return text if len(text) <= _LONGEST_VALUE_SHOWN else text[: _LONGEST_VALUE_SHOWN - 3] + "..."
