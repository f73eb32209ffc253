"""Recording the work of a device and replaying it: CUDA graphs behind an interface of three calls.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs"; torch/cuda/graphs.py, torch 2.11 and 2.13.
"""

from __future__ import annotations

import gc
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

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
        """Record work into a graph; recordings share one pool, whose memory nothing outlives a replay in.

        Raises:
            Exception: what the work raised, rather than what torch says of a recording that has broken off.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, causes = torch.cuda.CUDAGraph(), []
        # The stream is set here too: where a recording fails, torch's own context leaves it the current one (torch 2.13).
        with torch.cuda.device(self._device), torch.cuda.stream(self._side_stream()), _no_garbage_collection():
            try:
                with self._recording(graph, pool=self._pool):
                    try:
                        work()
                    except Exception as error:
                        causes.append(error)
                        raise
            except Exception as error:
                self._clear_up()
                raise (causes or [error])[0] from None
        return graph.replay

    def _recording(self, graph: torch.cuda.CUDAGraph, *, pool: object = None) -> AbstractContextManager[None]:
        # Threads that load data or write checkpoints may call CUDA meanwhile: "global" would let that break the recording.
        return torch.cuda.graph(
            graph,
            pool=pool,  # pyright: ignore[reportArgumentType]  (an opaque token)
            stream=self._side_stream(),
            capture_error_mode="thread_local",
        )

    def _clear_up(self) -> None:
        """Have generator and allocator leave a recording that has broken off: torch ends one that went well only.

        Else the generator counts as being recorded, and the next dropout raises "Offset increment outside graph capture"; and the
        allocator goes on keeping back what other streams have used.

        Source: aten/src/ATen/cuda/CUDAGraph.cpp, `capture_end` and `reset`, torch 2.13.
        """
        pool, self._pool = self._pool, None  # the old one counts as being recorded into
        inner: Any = torch._C  # Any: what torch.cuda.memory.use_mem_pool is made of
        with suppress(Exception):  # where torch has cleared up by itself
            inner._cuda_endAllocateToPool(self._side_stream().device_index, pool)
            inner._cuda_releasePool(self._side_stream().device_index, pool)
        with suppress(Exception):  # a recording that goes well ends it for the generator, too
            nothing = torch.zeros(1, device=self._device)
            with self._recording(torch.cuda.CUDAGraph()):
                nothing.zero_()

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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage inside: what is freed then, pinned memory say, asks the device, which ends a recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
