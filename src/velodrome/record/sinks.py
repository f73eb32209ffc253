"""Sinks by name: those a run gets unasked, and those it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.errors import ArgumentError, nearest
from velodrome.record.csv_sink import CsvSink
from velodrome.record.tensorboard_sink import INSTALL_HINT, TensorBoardSink, has_tensorboard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from velodrome.record.sink import Sink

__all__ = ["SINK_NAMES", "default_sinks", "make_sink", "make_sinks"]

SINK_NAMES = ("csv", "tensorboard")


def default_sinks(run_path: Path, say: Callable[[str], None], names: Sequence[str] = SINK_NAMES) -> list[Sink]:
    """Return the sinks that a run gets unasked: one whose package is missing is left out, with a line.

    Args:
        run_path: the run directory.
        say: shows a line to people.
        names: which ones, out of `SINK_NAMES`.
    Raises:
        ArgumentError: a name is unknown.
    """
    sinks: list[Sink] = []
    for name in names:
        if name == "tensorboard" and not has_tensorboard():
            say(f"No TensorBoard files: tensorboard is not installed. To have them: {INSTALL_HINT}")
            continue
        sinks.append(make_sink(name, run_path))
    return sinks


def make_sinks(run_path: Path, names: Sequence[str]) -> list[Sink]:
    """Return the sinks that the user asked for by name.

    Raises:
        ArgumentError: a name is unknown, or its package is not installed.
    """
    return [make_sink(name, run_path) for name in names]


def make_sink(name: str, run_path: Path) -> Sink:
    """Return one sink by name, writing to its usual place in the run directory.

    Raises:
        ArgumentError: the name is unknown, or its package is not installed.
    """
    if name == "csv":
        return CsvSink(run_path / "metrics.csv")
    if name == "tensorboard":
        return TensorBoardSink(run_path / "tb")
    raise ArgumentError(
        f'"{name}" is not a logger. A logger is a name or an object with write(row) and close(). '
        f"{nearest(str(name), SINK_NAMES)}",
        name=name,
    )
