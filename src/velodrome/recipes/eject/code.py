"""Python as `ruff format` writes it, at its own line length of 88: literals, calls and blocks."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LINE_LENGTH", "NO_PART", "Part", "assign", "call", "collection", "indent", "keywords", "literal", "wrap"]

LINE_LENGTH = 88


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of a script needs at the top of the file."""

    imports: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    """lines such as `SEED = 0  # of weights and order`"""
    definitions: tuple[str, ...] = ()
    """functions and classes"""


NO_PART = Part()


def literal(value: object) -> str:
    """Return a value of a recipe as Python, with double quotes.

    >>> literal(["a", 1, {"b": 0.5}])
    '["a", 1, {"b": 0.5}]'
    """
    match value:
        case str():
            text = repr(value)
            return f'"{text[1:-1]}"' if text.startswith("'") and '"' not in value else text
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case tuple():
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        case dict():
            return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    return repr(value)


def keywords(arguments: Mapping[str, object]) -> list[str]:
    """Return keyword arguments as they are written in a call."""
    return [f"{name}={literal(value)}" for name, value in arguments.items()]


def call(head: str, arguments: Sequence[str], tail: str = "", *, level: int = 0) -> str:
    """Return `head(arguments)tail`, on one line where it fits, as `ruff format` breaks it where it does not.

    Args:
        head: what is called, with what stands before it.
        arguments: as they are written.
        tail: what follows the closing bracket.
        level: how far in the lines will be; they are returned without.
    """
    width = LINE_LENGTH - 4 * level
    line = f"{head}({', '.join(arguments)}){tail}"
    if len(line) <= width:
        return line
    inner = f"    {', '.join(arguments)}"
    if len(inner) > width:
        inner = "\n".join(f"    {argument}," for argument in arguments)
    return f"{head}(\n{inner}\n){tail}"


def collection(head: str, entries: Sequence[str], *, level: int = 0) -> str:
    """Return `head[entries]`, where head ends with its opening bracket: on one line, or one entry a line."""
    closing = {"[": "]", "{": "}"}[head[-1]]
    line = f"{head}{', '.join(entries)}{closing}"
    if len(line) <= LINE_LENGTH - 4 * level:
        return line
    return "\n".join([head, *(f"    {entry}," for entry in entries), closing])


def assign(name: str, value: Sequence[object] | str, comment: str) -> str:
    """Return a constant with a comment above it, broken where it is too long."""
    if isinstance(value, str):
        line, text = f"{name} = {literal(value)}", literal(value)
        if len(line) > LINE_LENGTH >= len(text) + 4:
            line = f"{name} = (\n    {text}\n)"
    else:
        line = collection(f"{name} = [", [literal(item) for item in value])
    return f"# {comment}\n{line}"


def indent(lines: Iterable[str], levels: int = 1) -> str:
    """Return the lines as one block, so many levels in."""
    return textwrap.indent("\n".join(lines), "    " * levels)


def wrap(text: str, *, prefix: str = "") -> str:
    """Return a sentence in lines of at most 88 characters, each with the prefix."""
    return textwrap.fill(
        text,
        LINE_LENGTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )
