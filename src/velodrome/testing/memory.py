"""A layer for which memory runs out, at a size that the test chooses: no memory is used up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MemoryLimit"]


class MemoryLimit(nn.Module):
    """Passes its input on; with more samples than fit it raises the error that CUDA's allocator raises.

    Args:
        samples: that fit in training; None for any number.
        where: "forward", or "backward": then the forward pass succeeds.
        in_evaluation: samples that fit in eval mode, always in the forward pass; None for any number.
    """

    def __init__(self, samples: int | None, *, where: str = "forward", in_evaluation: int | None = None) -> None:
        super().__init__()
        self.samples = samples
        self.where = where
        self.in_evaluation = in_evaluation
        self.sizes: list[int] = []
        """of every batch or part that came, those that did not fit too"""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the input."""
        self.sizes.append(len(inputs))
        limit = self.samples if self.training else self.in_evaluation
        if limit is None or len(inputs) <= limit:
            return inputs
        if self.training and self.where == "backward":
            return _FailsBackward.apply(inputs)
        raise torch.OutOfMemoryError(f"CUDA out of memory. Planted: {len(inputs)} samples, {limit} fit.")


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (torch's says *args)
        raise torch.OutOfMemoryError(f"CUDA out of memory. Planted: the backward pass of {len(gradient)} samples.")
