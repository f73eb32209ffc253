"""Runs beside one another, as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.report.html import Markup, join, page, table, tag
from velodrome.report.overlay import plot_runs
from velodrome.report.pictures import missing_pictures, show_figure
from velodrome.report.run_page import section
from velodrome.report.style import STYLE
from velodrome.report.words import show_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from velodrome.report.comparison import ComparedNumber, Comparison
    from velodrome.report.facts import RunFacts

__all__ = ["comparison_page"]


def comparison_page(found: Comparison, runs: Sequence[RunFacts]) -> str:
    """Return the comparison as one HTML page, which asks for nothing and runs nothing.

    Args:
        found: what was found.
        runs: that were compared, for their curves.
    Cost: that of one figure.
    """
    parts = (
        ("differences", "What differs", _show_differences(found)),
        ("metrics", "Metrics", _numbers(found, found.metrics, "Metric")),
        ("curves", "Curves", _show_curves(found, runs)),
        ("time", "Time", _numbers(found, found.effort, "")),
        ("bill", "Where the time went, in seconds", _numbers(found, found.bill, "Part")),
    )
    shown = [part for part in parts if part[2]]
    links = tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown)))
    states = tag("ul", *(tag("li", join([tag("strong", name), f": {run.status}"])) for name, run in zip(found.names, runs, strict=True)), class_="plain")  # fmt: skip
    notes = tag("ul", *(tag("li", note, class_="bad") for note in found.notes), class_="plain") if found.notes else ""
    title = f"{len(runs)} runs beside one another"
    return page(
        f"{', '.join(found.names)} – comparison",
        STYLE,
        tag("header", tag("h1", title), states, notes, links),
        tag("main", *(section(name, heading, content) for name, heading, content in shown)),
        tag("footer", "Made by Velodrome from the files of the runs; nothing in this page is loaded or run."),
    )


def _show_differences(found: Comparison) -> Markup:
    rows = [
        (each.name, *("–" if value is None else show_value(value) for value in each.values))
        for each in found.differences
    ]
    return join(
        [
            table(("", *found.names), rows, num_texts=1 + len(found.names)) if rows else tag("p", "Nothing that is recorded."),
            tag("p", f"Equal: {', '.join(found.equal)}.") if found.equal else "",
        ]
    )  # fmt: skip


def _numbers(found: Comparison, numbers: Sequence[ComparedNumber], title: str) -> Markup:
    if not numbers:
        return tag("p", "No run has any.")
    header, rows = found.tabulate(numbers, title)
    num_runs = 1 + len(found.names)
    header = (*header[:num_runs], *(each.capitalize() for each in header[num_runs:]))
    marked = [
        tuple(
            tag("strong", cell) if each.best is not None and index == each.best + 1 else cell
            for index, cell in enumerate(row)
        )
        for each, row in zip(numbers, rows, strict=True)
    ]
    caption = "The difference is that of the second to the first." if len(found.names) == 2 else ""
    return table(header, marked, caption=caption)


def _show_curves(found: Comparison, runs: Sequence[RunFacts]) -> Markup:
    try:
        figure = plot_runs(found.names, [run.epochs for run in runs])
    except ImportError:
        return missing_pictures()
    if figure is None:
        return tag("p", "No run has an epoch with a number.")
    return show_figure(figure, alt=f"Curves of {len(runs)} runs: each value over the epochs, one line a run.")
