"""What a run does for its report: it notes with what it goes on, and leaves one behind that is never a reason to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.record.surroundings import describe_surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["describe_going_on", "write_last_report"]

_FACTS = ("device", "seed", "processes", "budget")  # which `run.json` has of the last part of the run only


def describe_going_on(before: Mapping[str, Any], now: Mapping[str, Any], *, step: int) -> dict[str, Any]:
    """Return the event that a run goes on, with what may be otherwise than before: a report says what is.

    Args:
        before: what `run.json` said.
        now: what it says.
        step: of the checkpoint; 0 where there was none.
    Cost: one call of git.
    """
    return {
        "event": "went_on",
        "step": step,
        "before": {name: before.get(name) for name in _FACTS},
        "now": {**describe_surroundings(), **{name: now.get(name) for name in _FACTS}},
    }


def write_last_report(folder: Path, curves_png: bytes, *, draws: bool, warn: Callable[[str], None]) -> None:
    """Write `report.html`; the picture of the curves that is there already is taken as it is.

    Args:
        folder: the run directory, whose records are closed.
        curves_png: that picture, or nothing.
        draws: whether matplotlib may be imported.
        warn: shows a line.
    """
    from velodrome.recorded_runs.report import write_report  # some milliseconds, which only a run with a folder needs

    try:
        write_report(folder, curves_png=curves_png, draws=draws)
    except Exception as error:
        # Whatever it is, a mistake of ours included: the run is over and its results are whole.
        warn(
            f"warning: report.html was not written: {type(error).__name__}: {error} To write it: velodrome report {folder.name}"
        )
