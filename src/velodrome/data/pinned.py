"""Batches on their way to a GPU: through a ring of pinned buffers that are used again, on a stream beside the computation.

A copy from ordinary memory makes the host wait until the driver has taken it; pinning a batch first costs more than that. Here a batch is
copied by the host into pinned memory that was allocated once, and from there by the GPU, while it still computes the batch before: the host
runs ahead of it as long as nobody waits for a result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velodrome.data.batches import map_tensors, moves_itself

__all__ = ["PinnedRing", "laid_out_like"]

# The copy of one batch, the batch after it, and one to spare where batches differ in size.
_NUM_SLOTS = 3
_ALIGNMENT = 64


class PinnedRing:
    """Moves batches to one CUDA device.

    Args:
        device: where they go.
    Cost: three pinned buffers of the largest batch; one copy by the host; the host waits only where it is three batches ahead of the copies.
    Source: torch.Tensor.record_stream and the CUDA semantics notes, https://docs.pytorch.org/docs/stable/notes/cuda.html
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: list[Tensor | None] = [None] * _NUM_SLOTS
        self._copied: list[torch.cuda.Event | None] = [None] * _NUM_SLOTS
        self._slot = 0

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device; tensors that are there stay, objects with a `.to` move themselves."""
        # What is made while a model is evaluated is written to again while it is trained.
        with torch.inference_mode(False), torch.no_grad():
            return self._move(batch)

    def _move(self, batch: Any) -> Any:
        flat: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if _is_copied(tensor):
                flat.append(tensor)
            return tensor

        map_tensors(batch, note)
        if not flat:
            return self._move_others(batch, {})
        slot = self._slot
        self._slot = (slot + 1) % _NUM_SLOTS
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()  # SYNC: only where the host is a whole ring ahead of the copies
        offsets, total = [], 0
        for tensor in flat:
            offsets.append(total)
            total += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffers[slot]
        if buffer is None or len(buffer) < total:
            buffer = self._buffers[slot] = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        moved: dict[int, Tensor] = {}
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            for tensor, offset in zip(flat, offsets, strict=True):
                staged = laid_out_like(tensor, buffer[offset : offset + tensor.nbytes])
                staged.copy_(tensor)
                there = staged.to(self._device, non_blocking=True)
                there.record_stream(current)  # its memory must not be given away while the computation reads it
                moved[id(tensor)] = there
            event = self._copied[slot] = torch.cuda.Event()
            event.record(self._stream)
        current.wait_event(event)  # on the device; the host goes on
        return self._move_others(batch, moved)

    def _move_others(self, batch: Any, moved: dict[int, Tensor]) -> Any:
        device = self._device

        def place(tensor: Tensor) -> Tensor:
            found = moved.get(id(tensor))
            return tensor.to(device, non_blocking=True) if found is None else found

        return map_tensors(batch, place, lambda other: other.to(device) if moves_itself(other) else other)


def laid_out_like(tensor: Tensor, memory: Tensor) -> Tensor:
    """Return a view of memory with the shape of a tensor, in its order of numbers where they lie without gaps: channels last stays so.

    Args:
        tensor: whose `nbytes` the memory has.
        memory: of bytes.
    """
    flat = memory.view(tensor.dtype)
    if tensor.is_contiguous():
        return flat.view(tensor.shape)
    # Reading the order of the numbers: what torch gives a copy that preserves the format.
    strides = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()
    return flat.as_strided(tensor.shape, strides)


def _is_copied(tensor: Tensor) -> bool:
    """Return whether a tensor goes through the ring: dense ones on the CPU. Pinned ones are copied from where they are."""
    is_plain = type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_nested
    is_for_the_ring = is_plain and tensor.device.type == "cpu" and tensor.nbytes > 0 and not tensor.requires_grad
    return is_for_the_ring and not tensor.is_pinned()
