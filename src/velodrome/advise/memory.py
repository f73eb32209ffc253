"""How much memory trials took: the largest so far."""

from __future__ import annotations

import torch

from velodrome.linux import status_bytes

__all__ = ["peak_bytes", "process_peak_bytes"]


def peak_bytes(device: torch.device) -> int | None:
    """Return the largest memory so far: of the device on CUDA, of this process elsewhere; None where the system does not say."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak_bytes()


def process_peak_bytes() -> int | None:
    """Return the largest memory that this process has had so far; None where the system does not say."""
    return status_bytes("VmHWM")
