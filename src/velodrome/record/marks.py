"""Moments within a batch: a reading of the clock, or where a device works on its own an event that it passes."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceMarks", "HostMarks", "Marks", "make_marks"]


class Marks(Protocol):
    """Makes marks, and tells the time between two of them when both are over."""

    are_of_host: bool
    """whether they are readings of the clock; else the host's clock does not tell what a batch takes"""

    def now(self) -> Any:
        """Mark this moment, without waiting for anything."""
        ...

    def are_over(self, mark: Any) -> bool:
        """Return whether a mark, and with it all that were made before, is over."""
        ...

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two marks that are over."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until a mark is over."""
        ...

    def drain(self) -> None:
        """Wait until everything asked of the device is done."""
        ...


class HostMarks:
    """Readings of the clock: for the CPU, where what was called is done when it returns."""

    are_of_host = True
    now = staticmethod(perf_counter)

    def are_over(self, mark: float) -> bool:
        """Return True."""
        del mark
        return True

    def seconds(self, begin: float, end: float) -> float:
        """Return the difference."""
        return end - begin

    def wait(self, mark: float) -> None:
        """Do nothing."""

    def drain(self) -> None:
        """Do nothing."""


class DeviceMarks:
    """CUDA events: the time between two of them is the device's, with the gaps in which it waited for the host.

    The sum over a batch is therefore what the batch took, however far the host runs ahead: data that were fetched while the device was
    busy cost nothing, and a forward pass whose kernels are small costs what it takes to launch them.

    Args:
        device: whose current stream is marked.
    """

    are_of_host = False

    def __init__(self, device: torch.device) -> None:
        from torch import cuda

        self._cuda, self._device = cuda, device

    def now(self) -> Any:
        """Record an event; about 3 microseconds."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def are_over(self, mark: Any) -> bool:
        """Ask the driver, without waiting."""
        return mark.query()

    def seconds(self, begin: Any, end: Any) -> float:
        """Return what the device measured."""
        return begin.elapsed_time(end) / 1000

    def wait(self, mark: Any) -> None:
        """Wait for the device: at the end of a run."""
        mark.synchronize()  # SYNC: at the end of a run

    def drain(self) -> None:
        """Wait for the device: where somebody is about to."""
        self._cuda.current_stream(self._device).synchronize()  # SYNC: before something that waits anyway


def make_marks(device: torch.device) -> Marks:
    """Return the marks for a device; of other devices than CUDA only the host's time is known."""
    return DeviceMarks(device) if device.type == "cuda" else HostMarks()
