"""Results of recorded steps, kept one after the other until somebody reads them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Ring"]


class Ring:
    """A row of slots on the device: a recorded step writes into the next one, and the host knows which one that is.

    A replay writes to the addresses that it was recorded with, so its results are gone with the next replay. Copying each out
    would be a kernel launch a step; here the copy is recorded too, to a place that a counter on the device decides.

    Args:
        like: shape, dtype and device of one result.
        slots: results that are kept; more than anybody holds at once.
    Cost: two small kernels within the recorded step, and one launch every `slots` steps.
    """

    def __init__(self, like: Tensor, slots: int) -> None:
        self._buffer = torch.zeros((slots, *like.shape), dtype=like.dtype, device=like.device)
        self._views = list(self._buffer.unbind())
        self._position = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._next = 0

    def write(self, value: Tensor) -> None:
        """Write a result into the next slot, as far as the device knows it: what is recorded."""
        self._buffer.index_copy_(0, self._position, value.detach().unsqueeze(0))
        self._position.add_(1)

    def peek(self) -> Tensor:
        """Return the slot that the next step writes into."""
        return self._views[self._next]

    def advance(self) -> None:
        """Take note that a step was made."""
        self._next += 1
        if self._next == len(self._views):
            self._next = 0
            self._position.zero_()

    def rewind(self) -> None:
        """Have the device go on from the slot that the host knows: steps were tried that do not count."""
        self._position.fill_(self._next)

    def written(self, count: int) -> Tensor:
        """Return the results of that many steps that were tried from the present slot on."""
        return self._buffer[self._next : self._next + count]
