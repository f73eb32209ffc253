"""Recording the work of a device and replaying it: CUDA graphs behind an interface of three calls.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs"; torch/cuda/graphs.py, torch 2.11 and 2.13.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["CudaGraphs", "Recorder"]


class Recorder(Protocol):
    """Records work that reads and writes the same memory every time."""

    def on_side(self, work: Callable[[], None]) -> None:
        """Run work, not recorded, beside whatever else is queued, and have what comes later wait for it."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work without doing it; return what does it."""
        ...

    def noting_waits(self) -> AbstractContextManager[list[str]]:
        """Return a context and, when it is over, where the host waited for the device inside: such work cannot be recorded."""
        ...


class CudaGraphs:
    """Records CUDA graphs. What is recorded uses the current stream's order, and a pool of memory of its own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: object = None

    def on_side(self, work: Callable[[], None]) -> None:
        """Run work on a side stream: what is made lazily belongs to no stream that a recording must not touch."""
        current, side = torch.cuda.current_stream(self._device), self._side_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()
        current.wait_stream(side)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work into a graph; recordings share one pool, whose memory nothing outlives a replay in."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Threads that load data or write checkpoints may call CUDA meanwhile: "global" would let that break the recording.
        recording = torch.cuda.graph(
            graph,
            pool=self._pool,  # pyright: ignore[reportArgumentType]  (an opaque token)
            stream=self._side_stream(),
            capture_error_mode="thread_local",
        )
        with torch.cuda.device(self._device), recording:
            work()
        return graph.replay

    @contextmanager
    def noting_waits(self) -> Iterator[list[str]]:
        """Note each wait with the line that made it."""
        waits: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for each in caught:
            if "called a synchronizing" in str(each.message):
                waits.append(f"{each.filename}, line {each.lineno}")
            elif "prototype feature" not in str(each.message):  # what torch says of this mode itself
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream
