"""Trying steps that must not count: what a step changes is kept, put back, and compared."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from velodrome.step.capture.attributes import Attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.optim import Optimizer

__all__ = ["LARGEST_FRACTION", "Kept", "PythonSide", "difference", "named_state"]

LARGEST_FRACTION = 0.01
"""how far two ways of making the same steps may end from each other, relative to the way that the steps went, in each tensor"""
_ROUNDING = 1e-6  # of the numbers themselves, for what hardly moves


def named_state(modules: Sequence[nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Return every tensor that a step changes, by a name for people: weights, buffers, what the optimizer keeps for each weight."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(name: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor

    names: dict[int, str] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), name)
            add(name, parameter)
        for name, buffer in module.named_buffers():
            add(name, buffer)
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"parameter {index}")
            add(name, parameter)
            for key, value in optimizer.state.get(parameter, {}).items():
                add(f"{key} of {name}", value)
    return found


class Kept:
    """A copy of tensors and of the device's random state.

    Args:
        tensors: by name.
        device: whose generator is kept.
    Cost: memory for a second copy of all; no wait.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors = dict(tensors)
        self._device = device
        self.copies = self.read()
        self._random = _random_state(device)

    def read(self) -> dict[str, Tensor]:
        """Return copies of what the tensors hold now."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Give every tensor and the generator what they had."""
        for name, tensor in self._tensors.items():
            tensor.copy_(self.copies[name])
        _set_random_state(self._device, self._random)


class PythonSide:
    """What a step may change besides tensors in place: Python's and NumPy's generators, the CPU's, and attributes of modules.

    A recording replays none of that.

    Args:
        modules: whose attributes are looked at.
        device: whose own generator may be used.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        each = [each for module in modules for each in module.modules()]
        self._generators = self._read_generators()
        self._attributes = Attributes(each)
        self._buffers = [(module, dict(module._buffers)) for module in each]  # pyright: ignore[reportPrivateUsage]

    def put_back(self) -> str:
        """Put back what has changed, and return it in words: "" when nothing has."""
        changed = ""
        now = self._read_generators()
        for name, before in self._generators.items():
            if not _same_generator(before, now[name]):
                changed = f"a step draws from {name}, which a recording would not do again"
        random.setstate(self._generators["Python's random"])
        numpy.random.set_state(self._generators["numpy.random"])
        if self._device.type != "cpu":
            torch.set_rng_state(self._generators["the CPU's generator"])
        attribute = self._attributes.put_back()
        if attribute:
            changed = f"a step changes {attribute}, which a recording would not do again"
        for module, buffers in self._buffers:
            for name, buffer in buffers.items():
                if module._buffers.get(name) is not buffer:  # pyright: ignore[reportPrivateUsage]
                    changed = f"a step assigns another tensor to the buffer {name} of {type(module).__name__}: change it in place"
                    module._buffers[name] = buffer  # pyright: ignore[reportPrivateUsage]
        return changed

    def _read_generators(self) -> dict[str, Any]:
        own = {} if self._device.type == "cpu" else {"the CPU's generator": torch.get_rng_state()}
        return {"Python's random": random.getstate(), "numpy.random": numpy.random.get_state(), **own}


def difference(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> tuple[str, float]:
    """Compare where two ways of making the same steps ended; waits for the device.

    Relative to the way that the steps went rather than to the weights: with a wrong learning rate, a stale batch or a mask drawn
    twice the ends are as far apart as the steps are long, however small these are; rounding and the order of atomic additions
    are a small part of it, with Adam too.

    Args:
        one, other: the ends; `other` is the one that is trusted.
        start: where both began.
    Returns:
        What differs by more than `LARGEST_FRACTION`, or ""; and the largest fraction of all.
    """
    worst = 0.0
    for name, right in other.items():
        left, before = one[name], start[name]
        if torch.equal(left, right):  # SYNC: once a recording
            continue
        if not (right.is_floating_point() or right.is_complex()):
            return f"{name} is {_shown(left)} instead of {_shown(right)}", 1.0
        apart = (left - right).double().norm().item()  # SYNC: as above
        moved, size = (right - before).double().norm().item(), right.double().norm().item()  # SYNC: as above
        if not apart <= LARGEST_FRACTION * moved + _ROUNDING * size:
            return f"{name} ended {apart:g} away, on a way of {moved:g}", 1.0
        worst = max(worst, apart / max(moved, 1e-30))
    return "", worst


def _shown(tensor: Tensor) -> str:
    return str(tensor.item()) if tensor.numel() == 1 else f"another {tuple(tensor.shape)}"  # SYNC: something is wrong


def _same_generator(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, now)  # SYNC: none, the state of the CPU's generator
    if isinstance(before, tuple) and len(before) == len(now) and isinstance(before[1], numpy.ndarray):
        return numpy.array_equal(before[1], now[1]) and before[2:] == now[2:]
    return before == now


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
