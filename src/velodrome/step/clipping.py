"""Gradients before an update: clipped by value and by norm, their norms kept on the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Clipping", "layer_names"]


class Clipping:
    """Clips the gradients of a whole window: after they were unscaled and divided, by value first and then by norm.

    Args:
        norm: the largest 2-norm over all parameters of an optimizer; None does not clip.
        value: the largest absolute value of an element; None does not clip.
        layers: for norms layer by layer, the layer's name by the parameter's `id`; empty for the total alone.
        keep_norms: measure the norm also where nothing is clipped.
    Raises:
        ArgumentError: a limit that is not positive.
    Cost: one norm a parameter and one multiplication; no wait for the device.
    """

    def __init__(
        self,
        *,
        norm: float | None = None,
        value: float | None = None,
        layers: Mapping[int, str] | None = None,
        keep_norms: bool = False,
    ) -> None:
        for name, limit in (("clip_norm", norm), ("clip_value", value)):
            if limit is not None and (
                isinstance(limit, bool)
                or not isinstance(limit, (int, float))
                or not limit > 0
                or not math.isfinite(limit)
            ):
                raise ArgumentError(f"{name}={limit!r} is not a limit. It must be a positive number, or None.")
        self._norm = norm
        self._value = value
        self._layers = dict(layers or {})
        self.is_on = norm is not None or value is not None or keep_norms
        """whether there is anything to do"""

    def apply(
        self,
        parameters: Sequence[nn.Parameter],
        check: Callable[[Tensor, Sequence[nn.Parameter]], None] = lambda norm, parameters: None,
    ) -> dict[str, Tensor]:
        """Clip the gradients in place, and return their norms before that, as scalars on the device.

        Args:
            parameters: of the optimizer.
            check: is shown the norm before anything is clipped: after it a single NaN is everywhere, and cannot be named.
        """
        held = [parameter for parameter in parameters if parameter.grad is not None]
        if not held:
            return {}
        norms = self._norms_by_layer(held) if self._layers else {}
        total = torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
        check(total, held)
        if self._value is not None:
            torch.nn.utils.clip_grad_value_(held, self._value)
            if self._norm is not None:
                torch.nn.utils.clip_grad_norm_(held, self._norm)
        elif self._norm is not None:
            torch.nn.utils.clip_grads_with_norm_(held, self._norm, total)  # the second half of clip_grad_norm_
        return {"grad_norm": total, **norms}

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `apply` calls, in order, in words and with the function: for `Trainer.explain`."""
        found: list[tuple[str, Any]] = []
        if self._layers:
            found.append(("note the norm of each layer's gradients", self._norms_by_layer))
        found.append(("note the norm of all gradients", torch.nn.utils.get_total_norm))
        if self._value is not None:
            found.append((f"clip each number to {self._value:g}", torch.nn.utils.clip_grad_value_))
        if self._norm is not None:
            whole = self._value is not None  # by then the norm is another one
            clip = torch.nn.utils.clip_grad_norm_ if whole else torch.nn.utils.clip_grads_with_norm_
            found.append((f"clip to norm {self._norm:g}", clip))
        return found if self.is_on else []

    def _norms_by_layer(self, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        by_layer: dict[str, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_layer.setdefault(self._layers.get(id(parameter), "other"), []).append(parameter.grad)
        return {f"grad_norm/{layer}": torch.nn.utils.get_total_norm(grads) for layer, grads in by_layer.items()}


def layer_names(model: nn.Module) -> dict[int, str]:
    """Return the name of the module that owns each parameter, by the parameter's `id`."""
    return {
        id(parameter): name or type(module).__name__
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
    }
