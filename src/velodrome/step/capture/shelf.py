"""The recordings that there are, one for each shape of batch, and which other shapes are worth one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.step.capture.static_batch import StaticBatch

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from velodrome.step.capture.recording import Recording

__all__ = ["Shelf"]

_MAX_RECORDINGS = 4  # shapes of batches
_TIMES_IN_A_ROW = 3  # that another shape of batch comes before it is worth a recording of its own


class Shelf:
    """Recordings of steps, by the shape of their batch."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self._in_a_row = 0
        self._other: StaticBatch | None = None

    def find(self, tensors: list[Tensor], nesting: Hashable) -> Recording | None:
        """Return the recording for such a batch, with the batch copied in."""
        for recording in self.recordings:
            if recording.static.fits(tensors, nesting):
                recording.static.fill(tensors)
                self._in_a_row = 0
                return recording
        return None

    def wants(self, batch: Any, tensors: list[Tensor], nesting: Hashable) -> bool:
        """Return whether to record steps with batches of this shape: the first shape, and others that come in a row; not the odd last one."""
        if not self.recordings:
            return True
        if len(self.recordings) >= _MAX_RECORDINGS:
            return False
        if self._other is None or not self._other.fits(tensors, nesting):
            self._other, self._in_a_row = StaticBatch(batch, tensors, nesting), 0
        self._in_a_row += 1
        return self._in_a_row >= _TIMES_IN_A_ROW

    def clear(self) -> None:
        """Drop all recordings."""
        self.recordings.clear()
