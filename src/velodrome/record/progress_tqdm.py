"""Progress on a terminal: one bar a phase, which leaves one line an epoch."""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from velodrome.record.progress_text import EpochSummary, format_rate, format_values
from velodrome.record.stream import SafeStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

__all__ = ["TqdmProgress"]

_KNOWN_LENGTH = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"
_UNKNOWN_LENGTH = "{desc} {n_fmt} batches, {elapsed}{postfix}"
# A terminal without a size (a container, a serial line) says 0 columns or rows, where tqdm draws nothing.
_FALLBACK_COLUMNS, _FALLBACK_ROWS = 80, 24
# With fewer columns than this, epoch, count, time left, loss, one metric and "30,000 samples/s" leave no bar.
_ROOMY_COLUMNS = 100


class TqdmProgress:
    """Draws epoch, batches, values, samples a second and the time left of the phase.

    Args:
        stream: a terminal.
        clock: seconds that never run backwards.

    Cost: a redraw takes about 0.1 ms, so the loop calls `advance` at most ten times a second.
    """

    def __init__(self, stream: TextIO | SafeStream, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if isinstance(stream, SafeStream) else SafeStream(stream)
        self._summary = EpochSummary(self.say, clock)
        self._is_roomy = True
        self._bar: Any = None  # tqdm has no types

    def begin(self, phase: str, epoch: int, epochs: int | None, total_batches: int | None) -> None:
        """Start a phase with a bar of its own."""
        self._close_bar()
        label = self._summary.begin(phase, epoch, epochs, total_batches).label
        if self._stream.is_silent:
            return
        columns, rows = self._stream.measure_size()
        has_size = columns > 0 and rows > 0
        self._is_roomy = columns >= _ROOMY_COLUMNS
        self._bar = _load_bar_class()(
            total=total_batches,
            desc=label,
            file=self._stream,
            leave=False,
            dynamic_ncols=has_size,
            ncols=None if has_size else columns or _FALLBACK_COLUMNS,
            nrows=None if has_size else _FALLBACK_ROWS,
            mininterval=0,
            bar_format=_KNOWN_LENGTH if total_batches else _UNKNOWN_LENGTH,
        )

    def advance(self, batches_done: int, samples_done: int) -> None:
        """Take how much of this phase is done, counted from its start, and redraw the bar."""
        phase = self._summary.phase
        if phase is None:
            return
        phase.batches_done, phase.samples_done = batches_done, samples_done
        if self._bar is None or self._stream.is_silent:
            return
        rate = format_rate(samples_done, self._summary.measure_s(phase))
        parts = (format_values(phase.values), rate if self._is_roomy else rate.replace(" samples", ""))
        self._bar.n = batches_done
        self._bar.set_postfix_str(", ".join(part for part in parts if part), refresh=False)
        self._bar.refresh()

    def show(self, values: Mapping[str, float]) -> None:
        """Take the newest values; the next `advance` draws them."""
        self._summary.show(values)

    def end(self) -> None:
        """Take the bar away; the epoch's line follows when the epoch is over."""
        self._close_bar()
        self._summary.end()

    def close(self) -> None:
        """Take the bar away and say the line that is still due."""
        self._close_bar()
        self._summary.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        self._stream.write_line(line)
        if self._bar is not None:
            self._bar.refresh()

    def _close_bar(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.close()


@cache
def _load_bar_class() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):
        """A bar without tqdm's helper thread and process lock: one thread draws it, when told to."""

        monitor_interval = 0

    # tqdm's own lock is shared between processes and may start a helper process just to exist.
    Bar.set_lock(threading.RLock())
    return Bar
