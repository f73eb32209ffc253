"""Recording without a device that can: what is recorded is called again, on the same memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Replayer"]


class Replayer:
    """Stands in for CUDA graphs on the CPU: `Trainer(engine=Replayer())`.

    All of the captured engine runs but the graph itself: static batches, learning rates in tensors, results in rings, the steps
    both ways before it is trusted, the odd batch, recording again, the fall-back. It is no faster than the eager engine.
    """

    def __init__(self) -> None:
        self.num_recorded = 0
        """recordings made"""
        self.num_replayed = 0
        """replays, those of the check before a recording is trusted included"""

    def on_side(self, work: Callable[[], None]) -> None:
        """Do the work."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the work, counted."""
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            work()

        return replay

    @contextmanager
    def noting_waits(self) -> Iterator[list[str]]:
        """Note nothing: on the CPU nothing waits."""
        yield []
