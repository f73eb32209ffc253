"""Progress for a file, a pipe or a job's log: whole lines, few of them, never a carriage return."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from velodrome.record.progress_text import EpochSummary, format_duration, format_rate, format_values
from velodrome.record.stream import SafeStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

    from velodrome.record.progress_text import PhaseProgress

__all__ = ["LineProgress"]


class LineProgress:
    """Says a line at the end of an epoch, and one every 30 s within a phase that takes longer.

    Args:
        stream: where the lines go.
        every_s: the least time between two lines within a phase.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        stream: TextIO | SafeStream,
        *,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if isinstance(stream, SafeStream) else SafeStream(stream)
        self._every_s = every_s
        self._clock = clock
        self._next_line_s = 0.0
        self._summary = EpochSummary(self.say, clock)

    def begin(self, phase: str, epoch: int, epochs: int | None, total_batches: int | None) -> None:
        """Start a phase; nothing is printed yet."""
        self._next_line_s = self._summary.begin(phase, epoch, epochs, total_batches).started_s + self._every_s

    def advance(self, batches_done: int, samples_done: int) -> None:
        """Take how much of this phase is done, counted from its start."""
        phase = self._summary.phase
        if phase is None:
            return
        phase.batches_done, phase.samples_done = batches_done, samples_done
        now_s = self._clock()
        if now_s >= self._next_line_s:
            self._next_line_s = now_s + self._every_s
            self.say(_describe(phase, now_s - phase.started_s))

    def show(self, values: Mapping[str, float]) -> None:
        """Take the newest values."""
        self._summary.show(values)

    def end(self) -> None:
        """End the phase."""
        self._summary.end()

    def close(self) -> None:
        """Say the line that is still due."""
        self._summary.close()

    def say(self, line: str) -> None:
        """Print a line."""
        self._stream.write_line(line)


def _describe(phase: PhaseProgress, seconds: float) -> str:
    done, total = phase.batches_done, phase.total_batches
    count = f"{done:,}/{total:,} batches {100 * min(1.0, done / total):.0f}%" if total else f"{done:,} batches"
    left = f"{format_duration(seconds * (total - done) / done)} left" if total and 0 < done <= total else ""
    rate = format_rate(phase.samples_done, seconds)
    return "  ".join(part for part in (phase.label, count, format_values(phase.values), rate, left) if part)
