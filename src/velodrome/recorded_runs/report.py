"""Writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from velodrome.errors import ArgumentError
from velodrome.record.atomic import replace_file
from velodrome.recorded_runs.page_target import REPORT_NAME, refuse_files_of_runs
from velodrome.recorded_runs.report_facts import read_facts
from velodrome.report.run_page import run_page

if TYPE_CHECKING:
    import os

    from velodrome.report.facts import RunFacts

__all__ = ["write_page", "write_report"]


def write_report(
    run_dir: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    facts: RunFacts | None = None,
    curves_png: bytes = b"",
    draws: bool = True,
) -> Path:
    """Write one HTML page about a run, which opens without a network and runs nothing. Its files stay as they are.

    Args:
        run_dir: a run directory, of a run that is over, under way, killed or broken.
        path: where to, over whatever is there but files of runs; None is `report.html` in the folder.
        facts: of the run, where they have been read already.
        curves_png: the picture of the curves, where there is one already.
        draws: whether curves may be drawn.
    Returns:
        Where it was written.
    Raises:
        RefusedError: the folder holds no run, or the path is that of a file of a run.
        ArgumentError: the file cannot be written.
    Cost: see `read_facts` and `run_page`.
    """
    folder = Path(run_dir)
    target = folder / REPORT_NAME if path is None else Path(path).expanduser()
    refuse_files_of_runs(target, but_report_of=folder)
    write_page(target, run_page(read_facts(folder) if facts is None else facts, curves_png=curves_png, draws=draws))
    return target


def write_page(path: Path, text: str) -> None:
    """Put a page at its place in one move.

    Raises:
        ArgumentError: it cannot be written there.
    """
    try:
        replace_file(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ArgumentError(
            f"The report cannot be written to {path}: {error.strerror or error}. It must be a file in a folder that exists. Give another "
            f"place with --out FILE.",
            path=str(path),
        ) from error
