"""Torch's own backward pass and update, without the Python around them that this step has no use for.

On a small model that Python costs more than the arithmetic. Measured on one CPU core, torch 2.13, a linear layer of 68 weights:
`loss.backward()` 67 microseconds of which the engine's own work is 42; `SGD.step()` 17, of which 7. Both calls here run the same
kernels in the same order, so the bits are those of the calls that they stand for (tests/unit/step/test_bare.py).

What is left out is looked for first: hooks, a profiler, a subclass with a `step` of its own, a loss that is no plain scalar, a torch
whose inner parts look different. Where there is any of it, torch's public call is made.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import Optimizer

try:  # what `torch.autograd.backward` itself ends in; not public, so it may move
    from torch.autograd.graph import _engine_run_backward as run_engine
except ImportError:  # pragma: no cover
    run_engine = None

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["BareBackward", "BareStep", "unwrapped_step"]

_NO_HOOKS: Mapping[Any, Any] = {}


class BareBackward:
    """Calls `loss.backward()` for scalar losses; keeps the one that the gradient of a loss with regard to itself is."""

    def __init__(self) -> None:
        self._one = torch.ones(())
        self._dtype = self._one.dtype
        self._device = self._one.device

    @property
    def function(self) -> Callable[..., Any]:
        """What is called for a plain scalar: for `Trainer.explain`."""
        return Tensor.backward if run_engine is None else run_engine

    def __call__(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        if loss.__class__ is not Tensor or loss.ndim or run_engine is None:
            loss.backward()
            return
        if loss.dtype is not self._dtype or loss.device != self._device:
            self._one = torch.ones((), dtype=loss.dtype, device=loss.device)
            self._dtype, self._device = loss.dtype, loss.device
        run_engine((loss,), (self._one,), False, False, (), allow_unreachable=True, accumulate_grad=True)


class BareStep:
    """Calls `optimizer.step()`.

    Args:
        optimizer: any; one of torch's own, not patched and not differentiable, is called without its wrappers.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._inner = unwrapped_step(optimizer)
        self._before = getattr(optimizer, "_optimizer_step_pre_hooks", _NO_HOOKS)
        self._after = getattr(optimizer, "_optimizer_step_post_hooks", _NO_HOOKS)
        self._always_before = getattr(sys.modules[Optimizer.__module__], "_global_optimizer_pre_hooks", _NO_HOOKS)
        self._always_after = getattr(sys.modules[Optimizer.__module__], "_global_optimizer_post_hooks", _NO_HOOKS)

    def __call__(self) -> None:
        """Update the parameters."""
        inner = self._inner
        is_watched = self._before or self._after or self._always_before or self._always_after
        if inner is None or is_watched or profiler._is_profiler_enabled:
            self._optimizer.step()
            return
        with torch.no_grad():
            inner(self._optimizer)


def unwrapped_step(optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
    """Return what torch's two decorators of `step` end in; None where they are not what they are known to be."""
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim") or "step" in vars(optimizer):  # a scheduler of torch's patches it
        return None
    if optimizer.defaults.get("differentiable", True):
        return None
    hooked = kind.step
    graded = getattr(hooked, "__wrapped__", None)
    inner = getattr(graded, "__wrapped__", None)
    codes = [getattr(getattr(each, "__code__", None), "co_name", "") for each in (hooked, graded, inner)]
    return inner if codes == ["wrapper", "_use_grad", "step"] else None
