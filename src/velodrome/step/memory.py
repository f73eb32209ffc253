"""Memory that ran out: how the errors of the allocators are recognised, and how memory is had back."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["describe_shapes", "is_out_of_memory", "memory_in_use", "release"]

# What torch raises as a plain RuntimeError: the CPU's allocator, MPS, and libraries of CUDA with workspaces of their own.
_WORDS = (
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_MAX_SHAPES = 6


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an allocation failed, whichever allocator it was."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release(error: BaseException, device: torch.device) -> None:
    """Let go of what the failed computation holds: the locals of its frames, cycles, and what CUDA's allocator keeps.

    The traceback can still be printed. Frames that are still running, those of the callers, keep their locals.

    Cost: a collection of garbage, tens of milliseconds; memory ran out, which is rare.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # a context that is broken for good: the error that is under way says so
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Return `peak_bytes` of this process, and `free_bytes` and `total_bytes` of the device; nothing where only CUDA would know."""
    if device.type != "cuda":
        return {}
    try:
        free, total = torch.cuda.mem_get_info(device)
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "free_bytes": free, "total_bytes": total}
    except RuntimeError:  # as above
        return {}


def describe_shapes(batch: Any) -> str:
    """Return the tensors of a batch in words: "float32 (64, 1, 28, 28), int64 (64,)"; "" where there are none."""
    told = [f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in _tensors(batch)]
    more = f", and {len(told) - _MAX_SHAPES} more" if len(told) > _MAX_SHAPES else ""
    return f"{', '.join(told[:_MAX_SHAPES])}{more}"


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _tensors(part)
