"""Where a page may be written: over nothing that somebody has made, and never over what a run has in its folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from velodrome.errors import RefusedError
from velodrome.record.atomic import refuse_existing
from velodrome.record.reading import RUN_ENTRIES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["REPORT_NAME", "check_page_target", "refuse_files_of_runs"]

REPORT_NAME = "report.html"
_MARKS = ("run.json", "metrics.jsonl")


def check_page_target(target: Path, *, run: Path | None = None, force: bool) -> None:
    """Refuse a place that has a file already.

    Args:
        target: where the page is to be written.
        run: whose report it is; the one in its folder is written anew.
        force: another file may be written over, too; never one that belongs to a run.
    Raises:
        RefusedError: says what is there.
    """
    refuse_files_of_runs(target, but_report_of=run)
    if run is None or _place(target) != _place(run / REPORT_NAME):
        refuse_existing(target, force=force)


def refuse_files_of_runs(target: Path, *, but_report_of: Path | None = None) -> None:
    """Refuse a file that a run writes or reads in its folder, whether it is there yet or not.

    Args:
        target: where something is to be written.
        but_report_of: the run whose report may be written anew.
    Raises:
        RefusedError: names the run.
    """
    place = _place(target)
    if but_report_of is not None and place == _place(but_report_of / REPORT_NAME):
        return
    for folder in place.parents:
        name = place.relative_to(folder).parts[0]
        if name in RUN_ENTRIES and any(os.path.lexists(folder / mark) for mark in _MARKS):
            raise RefusedError(
                f"{target} is a file of the run in {folder}, and no page is written over one. Give another --out.",
                path=str(target),
            )


def _place(path: Path) -> Path:
    """Return where a file lies; if it is a link itself, that one is replaced and not what it leads to."""
    return path.parent.resolve() / path.name
