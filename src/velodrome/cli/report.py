"""`velodrome report RUN`: one page about a run."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen
from velodrome.report.html import make_visible


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; default: report.html in the run.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page about a run, which opens without a network.

    Example: velodrome report runs/my-run
    """
    from velodrome.recorded_runs.page_target import check_page_target
    from velodrome.recorded_runs.report import write_report
    from velodrome.recorded_runs.report_facts import read_facts

    screen = Screen(as_json=json)
    folder = run.expanduser()
    if out is not None:
        check_page_target(out.expanduser(), run=folder, force=force)
    facts = read_facts(folder)
    written = write_report(folder, out, facts=facts)
    lines = [f"Report: {written}", *(f"Problem: {make_visible(each)}" for each in facts.problems)]
    screen.answer(
        "\n".join(lines),
        {"report": str(written), "run": str(run), "status": facts.status, "problems": list(facts.problems)},
    )
