"""What tests ask of an HTML page: that it runs nothing and asks for nothing, and what its text says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "footer", "h1", "h2", "h3", "p", "ul", "li", "a",
    "span", "strong", "small", "pre", "code", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "img", "details", "summary", "time",
}  # fmt: skip


class Page(HTMLParser):
    """A page taken apart."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            return
        self.texts.append(data)
        if {"th", "td"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def table(self, first_header):
        """Return the rows below the header of the table whose header begins so."""
        (found,) = [rows for rows in self.tables if rows and rows[0][0] == first_header]
        return found[1:]

    def row(self, name):
        """Return the cells behind the first one, of the only row of that name."""
        (found,) = [row[1:] for rows in self.tables for row in rows if row[0] == name]
        return found


def harmless(source: str) -> Page:
    """Take a page apart; fail if it could run, load or send something, or forbids none of that."""
    page = Page(source)
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert set(attributes) <= {
            "alt", "charset", "class", "colspan", "content", "href", "http-equiv", "id", "lang", "name", "open", "scope", "src", "style",
            "title",
        }  # fmt: skip
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert re.fullmatch(r"width:\d+\.\d%", attributes.get("style") or "width:0.0%")
        assert tag != "img" or attributes.get("alt")
    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv")]
    assert len(policies) == 1
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policies[0]
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style
    return page
