"""How a run shows that it is alive: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from velodrome.record.progress_line import LineProgress
from velodrome.record.progress_tqdm import TqdmProgress
from velodrome.record.stream import SafeStream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

__all__ = ["LineProgress", "NoProgress", "ProgressView", "TqdmProgress", "make_progress"]


class ProgressView(Protocol):
    """What the loop tells while it works; nothing that a view does may stop or slow down training."""

    def begin(self, phase: str, epoch: int, epochs: int | None, total_batches: int | None) -> None:
        """Start a phase ("train", "val"); what is not known in advance is None; epoch 0 means no epoch."""
        ...

    def advance(self, batches_done: int, samples_done: int) -> None:
        """Take how much of this phase is done, counted from its start."""
        ...

    def show(self, values: Mapping[str, float]) -> None:
        """Take the newest values, such as `{"loss": 0.5, "accuracy": 0.8}`."""
        ...

    def end(self) -> None:
        """End the phase; its last values must have been shown before."""
        ...

    def close(self) -> None:
        """End everything; a second call does nothing."""
        ...

    def say(self, line: str) -> None:
        """Show a line to people without harming the bar."""
        ...


class NoProgress:
    """Shows nothing."""

    def begin(self, phase: str, epoch: int, epochs: int | None, total_batches: int | None) -> None:
        """Show nothing."""

    def advance(self, batches_done: int, samples_done: int) -> None:
        """Show nothing."""

    def show(self, values: Mapping[str, float]) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""


def make_progress(enabled: bool, stream: TextIO | None = None) -> ProgressView:
    """Return the view that fits the stream: a bar for a terminal, plain lines for a file or a pipe.

    Args:
        enabled: False gives silence.
        stream: standard error when left out; a process without one (a Windows service) gets silence.
    """
    stream = sys.stderr if stream is None else stream
    if not enabled or stream is None:
        return NoProgress()
    safe = SafeStream(stream)
    return TqdmProgress(safe) if safe.isatty() else LineProgress(safe)
