"""A glance at every run: which of the user's lines read a tensor in each batch, seen in three of the first ones, unasked.

Through Python's profiling hook, for it is the only one that changes nothing for torch: a `TorchFunctionMode`, with which `waits.py` looks when it
is asked to, has compiled functions compiled anew and switches fast paths of attention off, and methods of `Tensor` that are replaced again and again lose
Python's caches for good. What the hook cannot see is left to `waits.py`: `float(t)`, `if t:`, masks, what only the driver knows of.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from velodrome.record.waits import READS, FoundWaits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Glance"]

_BATCHES = range(2, 5)
"""the first two are not like those after them: they are checked, caches are made"""
_MOST_EVENTS = 20_000
"""calls and returns in a batch, after which it looks away: about two milliseconds"""
_OF_C = ("c_call", "c_return", "c_exception")


class Glance:
    """Finds reads that happen in every batch. Says nothing by itself: what it finds is a finding of the bill.

    Args:
        device: of the model.
    Cost: about a tenth of a microsecond a call of Python's in three batches, two milliseconds a batch at most; none after.
    """

    speaks = False
    sees_fetching = False

    def __init__(self, device: torch.device) -> None:
        self.batches = _BATCHES
        self.num_seen = 0
        self._device = device.type
        self._found = FoundWaits(device)
        self._events_left = 0
        self._began = 0.0

    @contextmanager
    def around(self, number: int) -> Iterator[None]:
        """Look at a batch, unless a profiler of the user's does."""
        del number
        if sys.getprofile() is not None:
            yield
            return
        notice, self._events_left = self._notice, _MOST_EVENTS
        sys.setprofile(notice)
        try:
            yield
        finally:
            if sys.getprofile() is notice:
                sys.setprofile(None)

    def end(self) -> None:
        """Do nothing."""

    @property
    def sentences(self) -> list[str]:
        """The lines that read in each of the batches."""
        return self._found.sentences(self.num_seen, least=max(1, self.num_seen))

    def _notice(self, frame: FrameType, event: str, function: Any) -> None:
        self._events_left -= 1
        if self._events_left < 0:
            sys.setprofile(None)
        elif event in _OF_C and function.__name__ in READS:
            tensor = getattr(function, "__self__", None)
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device:
                if event == "c_call":
                    self._began = perf_counter()
                else:
                    self._found.add(function.__name__, perf_counter() - self._began, frame)
