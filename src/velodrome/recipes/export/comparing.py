"""What two programs gave for the same inputs, put side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Agreement", "compare", "flatten", "is_plain", "to_plain"]

_SMALLEST = 1e-3  # of outputs that are all nearly 0 the tolerance is taken as if they were this large


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far outputs are from those of the model: of the output where the difference is the largest fraction of what is allowed.

    Args:
        largest: difference of two numbers of this output.
        tolerance: for it.
        problem: a sentence where they do not agree within it, or "".
    """

    largest: float
    tolerance: float
    problem: str = ""

    @property
    def ratio(self) -> float:
        """The difference as a multiple of what is allowed: outputs of size 1 and of size a million are told apart by it."""
        if self.tolerance:
            return self.largest / self.tolerance
        return math.inf if self.largest else 0.0


def flatten(output: Any, name: str = "output") -> dict[str, Tensor]:  # Any: whatever a model returns
    """Return the tensors in an output by name: those of dicts by their keys, those of tuples numbered.

    >>> list(flatten({"logits": torch.zeros(1), "hidden": (torch.zeros(1), torch.zeros(1))}))
    ['logits', 'hidden.0', 'hidden.1']
    """
    if isinstance(output, Tensor):
        return {name: output}
    parts = _parts(output)
    inside = "" if name == "output" else f"{name}."
    found: dict[str, Tensor] = {}
    for key, part in parts.items():
        own = f"output.{key}" if isinstance(key, int) and not inside else f"{inside}{key}"
        found |= flatten(part, own)
    return found


def to_plain(output: Any) -> Any:  # Any: whatever a model returns
    """Return an output with dicts, lists and tuples for containers of other types: a file that names such a type wants its package."""
    parts = _parts(output)
    if type(output) in (list, tuple):
        return type(output)(map(to_plain, output))
    return {key: to_plain(part) for key, part in parts.items()} if parts else output


def is_plain(output: Any) -> bool:  # Any: whatever a model returns
    """Return whether it has no containers but dicts, lists and tuples."""
    parts = _parts(output)
    return not parts or (type(output) in (dict, list, tuple) and all(map(is_plain, parts.values())))


def _parts(output: Any) -> dict[Any, Any]:
    """Return what a container holds, by key or place; nothing for anything else."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, num_eps: float) -> Agreement:
    """Compare tensors by name: shape, type, and numbers, which may differ by a fraction of the largest number of their tensor.

    Whole numbers must be equal; NaN and infinities must stand in the same places.

    Args:
        expected: from the model.
        given: from the file.
        num_eps: this fraction, in the `eps` of the tensor's type: float32's is 1.2e-7.
    """
    if list(expected) != list(given):
        problem = f"It gives {', '.join(given) or 'no tensor'}; the model gives {', '.join(expected) or 'none'}."
        return Agreement(largest=0.0, tolerance=0.0, problem=problem)
    worst, name_of_worst = Agreement(largest=0.0, tolerance=0.0), ""
    for name, mine in expected.items():
        other = given[name]
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return Agreement(
                largest=0.0,
                tolerance=0.0,
                problem=f"{name} is {other.dtype} of shape {tuple(other.shape)}; the model gives {mine.dtype} of shape {tuple(mine.shape)}.",
            )
        if not mine.numel():
            continue
        difference = _largest_difference(mine, other)
        allowed = num_eps * torch.finfo(mine.dtype).eps * max(_size(mine), _SMALLEST) if _has_fractions(mine) else 0.0
        one = Agreement(largest=difference, tolerance=allowed)
        if not name_of_worst or one.ratio > worst.ratio:
            worst, name_of_worst = one, name
    if worst.ratio > 1:
        problem = f"{name_of_worst} differs by {worst.largest:.3g}; at most {worst.tolerance:.3g} is allowed."
        return replace(worst, problem=problem)
    return worst


def _largest_difference(mine: Tensor, other: Tensor) -> float:
    if mine.is_complex():
        mine, other = torch.view_as_real(mine), torch.view_as_real(other)
    mine, other = mine.double(), other.double()
    same = (mine == other) | (mine.isnan() & other.isnan())
    difference = torch.where(same, 0.0, (mine - other).abs()).max()
    return float(difference) if difference.isfinite() else float("inf")


def _has_fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _size(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
