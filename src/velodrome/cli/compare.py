"""`velodrome compare A B`: runs beside one another."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from velodrome.report.comparison import ComparedNumber, Comparison
    from velodrome.report.facts import RunFacts

_WIDEST = 44  # letters of a value; the page and --json have all of it
_MOST_ROWS = 40


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two run directories or more.", metavar="RUN RUN...")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write one page, with the curves of all.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Put runs beside one another: what differs between them, and whose numbers are better.

    Example: velodrome compare runs/a runs/b --out both.html
    """
    from velodrome.errors import ArgumentError
    from velodrome.recorded_runs.page_target import check_page_target
    from velodrome.recorded_runs.report import write_page
    from velodrome.recorded_runs.report_facts import read_facts
    from velodrome.report.comparison import compare_facts
    from velodrome.report.comparison_page import comparison_page
    from velodrome.report.overlay import MAX_RUNS

    screen = Screen(as_json=json)
    if not 2 <= len(runs) <= MAX_RUNS:
        raise ArgumentError(
            f"{len(runs)} run{'s were' if len(runs) != 1 else ' was'} given. From 2 to {MAX_RUNS} can be compared. "
            f"Name them: velodrome compare runs/a runs/b"
        )
    if out is not None:
        check_page_target(out.expanduser(), force=force)
    facts = [read_facts(run.expanduser()) for run in runs]
    found = compare_facts(facts, _names(runs, facts))
    if out is not None:
        write_page(out.expanduser(), comparison_page(found, facts))
    screen.answer(_lines(found, facts, out), _data(found, runs, facts, out))


def _names(runs: Sequence[Path], facts: Sequence[RunFacts]) -> list[str]:
    """Return the folders' names; where two are the same, the paths; where these are the same, with a number."""
    names = [each.name for each in facts]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def _lines(found: Comparison, facts: Sequence[RunFacts], out: Path | None) -> str:
    parts = [
        columns([("", *found.names), ("status", *(each.status for each in facts)), *_differences(found)]),
        f"Equal: {', '.join(found.equal)}." if found.equal else "",
        *(_numbers(found, numbers) for numbers in (found.metrics, found.effort, found.bill)),
        "\n".join(f"Note: {note}" for note in found.notes),
        f"Page: {out}" if out is not None else "",
    ]
    return _clean("\n\n".join(part for part in parts if part))


def _differences(found: Comparison) -> list[tuple[str, ...]]:
    from velodrome.report.words import show_value

    return [
        (_cut(each.name), *("-" if value is None else _cut(show_value(value)) for value in each.values))
        for each in found.differences
    ]


def _numbers(found: Comparison, numbers: Sequence[ComparedNumber]) -> str:
    if not numbers:
        return ""
    has_two, has_better = len(found.names) == 2, any(each.direction for each in numbers)
    rows = [("", *found.names, *(["difference"] if has_two else []), *(["better"] if has_better else []))]
    for each in numbers[:_MOST_ROWS]:
        values = (each.show(value) or "-" for value in each.values)
        better = "" if each.best is None else found.names[each.best]
        rows.append(
            (
                _cut(each.name),
                *values,
                *([each.show_difference()] if has_two else []),
                *([better] if has_better else []),
            )
        )
    more = len(numbers) - _MOST_ROWS
    return columns(rows) + (f"\nand {more:,} more (--json and --out have them)" if more > 0 else "")


def _data(found: Comparison, runs: Sequence[Path], facts: Sequence[RunFacts], out: Path | None) -> dict[str, Any]:
    def numbers(compared: Sequence[ComparedNumber]) -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "values": list(each.values),
                "direction": each.direction,
                "better": None if each.best is None else found.names[each.best],
            }
            for each in compared
        ]

    return {
        "runs": [
            {"name": name, "path": str(path), "status": each.status, "problems": list(each.problems)}
            for name, path, each in zip(found.names, runs, facts, strict=True)
        ],
        "differences": [{"name": each.name, "values": list(each.values)} for each in found.differences],
        "equal": list(found.equal),
        "metrics": numbers(found.metrics),
        "time": numbers(found.effort),
        "bill": numbers(found.bill),
        "notes": list(found.notes),
        "page": None if out is None else str(out),
    }


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"


def _clean(text: str) -> str:
    from velodrome.report.html import make_visible

    return make_visible(text, limit=len(text))
