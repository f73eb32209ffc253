"""A batch whose tensors stay where they are, and are filled with one batch after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["StaticBatch", "flatten"]


def flatten(batch: Any) -> tuple[list[Tensor], Hashable] | None:
    """Return the tensors of a batch and what its nesting is; None where it holds anything else.

    Args:
        batch: tensors, tuples, lists and dicts of them, however nested.
    """
    kind = type(batch)
    if kind is tuple or kind is list:
        if all(type(part) is Tensor for part in batch):  # nearly always
            return list(batch), (kind, len(batch))
        parts = [flatten(part) for part in batch]
        keys: tuple[Any, ...] = ()
    elif kind is dict:
        parts, keys = [flatten(part) for part in batch.values()], tuple(batch)
    elif kind is Tensor:
        return [batch], None
    else:
        return None
    if any(part is None for part in parts):
        return None
    found = [part for part in parts if part is not None]
    return [tensor for tensors, _ in found for tensor in tensors], (kind, keys, tuple(nesting for _, nesting in found))


class StaticBatch:
    """Copies of the tensors of a batch, in its nesting.

    Args:
        batch: one that `flatten` can take apart.
        tensors, nesting: what it gave.
    """

    def __init__(self, batch: Any, tensors: list[Tensor], nesting: Hashable) -> None:
        self.tensors = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
        self.batch = _rebuild(batch, iter(self.tensors))
        self._nesting = nesting
        self._looks = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]

    def fits(self, tensors: list[Tensor], nesting: Hashable) -> bool:
        """Return whether these can be copied in: the same nesting, shapes, dtypes and devices."""
        if nesting != self._nesting or len(tensors) != len(self._looks):
            return False
        for tensor, (shape, dtype, device) in zip(tensors, self._looks, strict=True):
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
                return False
        return True

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy a batch in; waits for nothing."""
        for own, given in zip(self.tensors, tensors, strict=True):
            own.copy_(given, non_blocking=True)


def _rebuild(batch: Any, tensors: Iterator[Tensor]) -> Any:
    if type(batch) is dict:
        return {key: _rebuild(part, tensors) for key, part in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_rebuild(part, tensors) for part in batch)
    return next(tensors)
