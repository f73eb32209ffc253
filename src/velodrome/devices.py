"""Which device a run uses."""

from __future__ import annotations

import torch

from velodrome.errors import ArgumentError

__all__ = ["resolve_device"]


def resolve_device(device: str | torch.device | int) -> torch.device:
    """Return the device asked for: "auto" is CUDA, then MPS, then the CPU.

    Raises:
        ArgumentError: an unknown device, or one that this machine or this build of PyTorch does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f'device={device!r} is not a device. Write "auto", "cpu", "cuda", "cuda:1" or "mps".'
        ) from error
    if resolved.type == "cuda":
        return _checked_cuda(resolved)
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError('device="mps" is not available on this machine. Use device="auto" or device="cpu".')
    if resolved.type == "cpu":
        return torch.device("cpu")
    try:
        torch.empty(0, device=resolved)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise ArgumentError(
            f'device={str(device)!r} cannot be used here: {error}. Use device="auto" or device="cpu".'
        ) from error
    return resolved


def _checked_cuda(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        why = (
            "this build of PyTorch has no CUDA"
            if torch.version.cuda is None
            else "no CUDA device was found; see nvidia-smi"
        )
        raise ArgumentError(f'device={str(device)!r} was asked for, but {why}. Use device="auto" or device="cpu".')
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ArgumentError(f"device={str(device)!r} does not exist: there are {count} CUDA devices, 0 to {count - 1}.")
    return torch.device("cuda", index)
