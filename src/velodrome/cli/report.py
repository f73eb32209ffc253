"""`velodrome report RUN`: one page about a run."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; default: report.html in the run.", metavar="FILE")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page about a run, which opens without a network.

    Example: velodrome report runs/my-run
    """
    from velodrome.reporting.write import write_report

    screen = Screen(as_json=json)
    written = write_report(run.expanduser(), out)
    screen.answer(f"Report: {written}", {"report": str(written), "run": str(run)})
