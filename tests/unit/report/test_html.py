"""The builder of pages: text cannot become markup, and nothing in a page can run or ask for anything."""

from __future__ import annotations

import pytest

from velodrome.report.html import MAX_TEXT, Markup, bar, join, make_visible, page, picture, table, tag


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "<b>&", tag("strong", "x")) == "<p>&lt;b&gt;&amp;<strong>x</strong></p>"
    assert join(["<", Markup("<br>")]) == "&lt;<br>"


def test_attributes_are_escaped_too():
    assert tag("span", "", title='"><script>') == '<span title="&quot;&gt;&lt;script&gt;"></span>'
    assert tag("details", open=True) == "<details open></details>"
    assert tag("details", open=False) == "<details></details>"


@pytest.mark.parametrize("name", ["script", "iframe", "form", "object", "svg", "link", "meta", "style"])
def test_an_element_that_runs_or_asks_for_something_cannot_be_made(name):
    with pytest.raises(AssertionError, match=name):
        tag(name)


@pytest.mark.parametrize(
    "attributes", [{"onclick": "x"}, {"href": "javascript:x"}, {"href": "https://x"}, {"srcset": "x"}]
)
def test_an_attribute_that_runs_or_asks_for_something_cannot_be_made(attributes):
    with pytest.raises(AssertionError):
        tag("a", "x", **attributes)


def test_a_picture_is_in_the_page_or_not_at_all():
    assert picture("data:image/png;base64,AAAA", alt="x").startswith('<figure><img src="data:image/png;base64,AAAA"')
    with pytest.raises(AssertionError, match="https"):
        picture("https://example.org/x.png", alt="x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("a\u2066b\u2069c", "a\\u2066b\\u2069c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("half \ud800", "half \\ud800"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("line\none\ttab", "line\none\ttab"),
        ("Größe 東京 שלום 👩‍🔬", "Größe 東京 שלום 👩‍🔬"),
    ],
)
def test_what_would_hide_or_reorder_letters_is_written_out_and_other_letters_stay(text, shown):
    assert make_visible(text) == shown


def test_a_long_text_is_cut_with_the_number_of_letters_left_out():
    assert make_visible("x" * (MAX_TEXT + 1234)) == "x" * MAX_TEXT + " … (1,234 more characters)"
    assert len(tag("td", "x" * 10_000_000)) < 2 * MAX_TEXT
    assert tag("pre", "x" * 3000, limit=3000) == f"<pre>{'x' * 3000}</pre>"


@pytest.mark.parametrize(("fraction", "width"), [(0.123, "12.3"), (-1.0, "0.0"), (7.0, "100.0"), (float("nan"), "0.0")])
def test_a_bar_is_as_wide_as_its_fraction(fraction, width):
    assert f'style="width:{width}%"' in bar(fraction)


def test_a_table_names_its_columns_and_rows():
    text = table(("Part", "Seconds"), [("forward", "1.5")], caption="Two", classes=["best"])
    assert text == (
        '<div class="wide"><table><caption>Two</caption><thead><tr><th scope="col">Part</th>'
        '<th scope="col" class="number">Seconds</th></tr></thead><tbody><tr class="best"><th scope="row">forward</th>'
        '<td class="number">1.5</td></tr></tbody></table></div>'
    )


def test_a_page_declares_that_it_loads_and_runs_nothing():
    text = page("<x>", "p{}", tag("p", "y"))
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;; img-src data:" in text
    assert "<title>&lt;x&gt;</title>" in text
    assert "<style>p{}</style>" in text
