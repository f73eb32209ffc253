"""HTML that is safe by construction: text is escaped unless it is markup already, and no element or attribute can run anything.

A builder of a few functions rather than templates: it is checked by the type checker, and needs no template language at the end of a run.
"""

from __future__ import annotations

import html
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_TEXT", "Markup", "bar", "join", "make_visible", "page", "picture", "table", "tag"]

MAX_TEXT = 2_000
"""characters of one text that are shown; a name or a message may come from anybody and be of any length"""

# No request, no script: a browser enforces what the builder promises.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_ELEMENTS = frozenset(
    [
        "a",
        "caption",
        "code",
        "details",
        "div",
        "figure",
        "footer",
        "h1",
        "h2",
        "h3",
        "header",
        "img",
        "li",
        "main",
        "nav",
        "p",
        "pre",
        "section",
        "span",
        "strong",
        "summary",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
        "time",
        "tr",
        "ul",
    ]
)
_ATTRIBUTES = frozenset(("alt", "class", "colspan", "href", "id", "open", "scope", "src", "style", "title"))
_VOID = frozenset(("img",))
# Marks that reorder or hide what stands beside them: a name with one of them would be shown as another name.
_TRICKS = frozenset(
    "\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\u2028\u2029\ufeff"
)


class Markup(str):
    """Text that is HTML already: made by the functions of this file only."""

    __slots__ = ()


def make_visible(text: str, *, limit: int = MAX_TEXT) -> str:
    """Return the text with control characters and marks of direction written out, and what is too long cut off.

    >>> make_visible("a\\u202eb")
    'a\\\\u202eb'
    """
    shown, left_out = text[:limit], len(text) - limit
    visible = "".join(_spell(letter) if _is_hidden(letter) else letter for letter in shown)
    return f"{visible} … ({left_out:,} more characters)" if left_out > 0 else visible


def tag(name: str, *children: object, limit: int = MAX_TEXT, **attributes: str | int | bool) -> Markup:
    """Return an element.

    Args:
        name: of the element; one that can run something or ask for something is refused, which would be our mistake.
        children: markup stays as it is; everything else is text.
        limit: of the length of each text.
        attributes: a trailing underscore is left out (`class_`); True is an attribute without a value, False none.
    """
    assert name in _ELEMENTS, name
    written = "".join(_attribute(key.rstrip("_"), value) for key, value in attributes.items() if value is not False)
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children, limit=limit)}</{name}>")


def join(children: Iterable[object], *, limit: int = MAX_TEXT) -> Markup:
    """Return the children one after the other; those that are no markup are escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(make_visible(str(child), limit=limit))
            for child in children
        )
    )


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    num_texts: int = 1,
    classes: Sequence[str] = (),
) -> Markup:
    """Return a table that scrolls by itself where it is wider than the page.

    Args:
        header: one cell a column; empty for a table of names and values.
        rows: the first cell of each is its heading; a row of one cell is as wide as the table.
        caption: says what it shows.
        num_texts: how many columns from the left hold text; the others hold numbers, which stand to the right.
        classes: of the rows, one each.
    """
    body = []
    for index, row in enumerate(rows):
        is_wide = len(row) == 1 < len(header)
        cells = (
            [tag("td", row[0], colspan=len(header))]
            if is_wide
            else [_cell(number, value, num_texts=num_texts) for number, value in enumerate(row)]
        )
        body.append(tag("tr", *cells, class_=(index < len(classes) and classes[index]) or False))
    head = [tag("th", name, scope="col", class_=number >= num_texts and "number") for number, name in enumerate(header)]
    parts = [
        *([tag("caption", caption)] if caption else []),
        *([tag("thead", tag("tr", *head))] if head else []),
        tag("tbody", *body),
    ]
    return tag("div", tag("table", *parts), class_="wide")


def bar(fraction: float) -> Markup:
    """Return a bar that is as wide as the fraction says; the number stands beside it, so it has no text."""
    percent = 100 * min(1.0, max(0.0, fraction)) if fraction == fraction else 0.0
    return tag("span", tag("span", style=f"width:{percent:.1f}%"), class_="bar")


def picture(source: str, *, alt: str) -> Markup:
    """Return an image that is in the page itself.

    Args:
        source: a `data:` address; another one would be a request.
        alt: what it shows, in words.
    """
    assert source.startswith("data:image/"), source[:40]
    return tag("figure", tag("img", src=source, alt=alt))


def page(title: str, style: str, *children: Markup) -> str:
    """Return a whole page, which asks for nothing and runs nothing.

    Args:
        title: of the window.
        style: our own style sheet.
        children: of its body.
    """
    shown = html.escape(make_visible(title, limit=200))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{shown}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(children)
        + "\n</body>\n</html>\n"
    )


def _cell(number: int, value: object, *, num_texts: int) -> Markup:
    if number == 0:
        return tag("th", value, scope="row")
    return tag("td", value) if number < num_texts else tag("td", value, class_="number")


def _attribute(name: str, value: str | int | bool) -> str:
    assert name in _ATTRIBUTES, name
    assert name != "href" or str(value).startswith("#"), value
    if value is True:
        return f" {name}"
    text = str(value)
    return f' {name}="{html.escape(text if name == "src" else make_visible(text))}"'


def _is_hidden(letter: str) -> bool:
    if letter < "\x7f":
        return letter < " " and letter not in "\n\t"
    return (
        letter in _TRICKS
        or "\U000e0000" <= letter <= "\U000e0fff"
        or unicodedata.category(letter) in ("Cc", "Cs", "Cn")
    )


def _spell(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
