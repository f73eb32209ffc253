"""A trace of some training batches by torch's own profiler, for TensorBoard and for a browser."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Profiler"]

_ROWS = 8


class Profiler:
    """Writes `profile/batches-11-15.pt.trace.json` into the run's folder, and says which operations took the time.

    The file is one for both: TensorBoard's profile plugin finds it below the folder, and chrome://tracing or ui.perfetto.dev open it.

    Args:
        batches: which ones.
        folder: for the trace.
        say: shows a line to people.
    Source: PyTorch's page "torch.profiler".
    """

    speaks = True
    sees_fetching = True

    def __init__(self, batches: range, *, folder: Path, say: Callable[[str], None]) -> None:
        self.batches = batches
        self._folder = folder
        self._say = say
        self._has_ended = False
        self._profile: Any = None
        self.num_seen = 0

    @contextmanager
    def around(self, number: int) -> Iterator[None]:
        """Record a batch; between two of them, in an evaluation say, recording goes on."""
        from torch.profiler import ProfilerAction, profile, supported_activities

        if self._has_ended:  # by an error that the user's loop went on after
            yield
            return
        if self._profile is None:
            self._profile = profile(
                activities=supported_activities(),
                schedule=lambda step: ProfilerAction.RECORD,  # the trace shows where a batch begins
                record_shapes=True,
                acc_events=True,
            )
            self._profile.start()
        try:
            yield
        except BaseException:
            self.end()
            raise
        if number != self.batches[-1]:
            self._profile.step()

    def end(self) -> None:
        """Write the trace, and say which operations took the time."""
        profile, self._profile = self._profile, None
        if self._has_ended:
            return
        self._has_ended = True
        if profile is None:
            self._say(f"Nothing was traced: the run had fewer than {self.batches.start + 1} batches.")
            return
        profile.stop()
        first, last = self.batches.start + 1, self.batches.start + self.num_seen
        path = self._folder / f"batches-{first}-{max(first, last)}.pt.trace.json"
        try:
            self._folder.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            self._say(f"The trace was not written: {error}")
            return
        lines = _top(profile.key_averages(), max(1, self.num_seen))
        self._say(
            f"Trace of {self.num_seen} batches: {path.relative_to(self._folder.parent)}, for chrome://tracing, ui.perfetto.dev or TensorBoard."
        )
        for line in lines:
            self._say(line)

    @property
    def sentences(self) -> list[str]:
        """Return nothing: a trace is for people to look at."""
        return []


def _top(averages: Any, num_batches: int) -> list[str]:
    """Return lines with the operations that took most of the time by themselves; on a device its time counts."""
    rows = [row for row in averages if not row.key.startswith("ProfilerStep")]
    on_device = any(row.self_device_time_total > 0 for row in rows)
    spent = [(row.self_device_time_total if on_device else row.self_cpu_time_total, row.key, row.count) for row in rows]
    total = sum(us for us, _, _ in spent) or 1.0
    top = sorted(spent, reverse=True)[:_ROWS]
    where = "on the device" if on_device else "on the CPU"
    return [
        f"  {f'operation, time {where}':<44}{'us a batch':>12}{'%':>7}{'calls':>8}",
        *(f"  {key[:42]:<44}{us / num_batches:>12,.1f}{us / total * 100:>7.1f}{count:>8}" for us, key, count in top),
    ]
