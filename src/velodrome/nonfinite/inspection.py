"""Which module makes the first number that is not finite: hooks on every module of a model, for one forward and backward pass.

```text
forward     before a module: its inputs and its own weights; after it: its outputs      the first that is bad is the answer
backward    gradients of inputs, outputs and weights, from the loss on                  the same
again       the backward pass under autograd's anomaly mode, for the operation and the line of its forward call
```
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.data.batches import named_tensors
from velodrome.nonfinite.facts import count_non_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Fault", "describe_fault", "find_fault"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first tensor that is not finite.

    Fields:
        module: the name of the module, as in `model.named_modules()`; the model's class for the model itself, "loss" for the loss.
        kind: "input", "weight", "output", "gradient", or "loss".
        tensor: which one: "input/0", "weight", "gradient of the input/0".
        num_nan, num_infinite, num_numbers: of the tensor.
        minimum, maximum: over its finite numbers; None where there are none.
        operation: of autograd, where a gradient became NaN; with the line that called it.
    """

    module: str
    kind: str
    tensor: str
    num_nan: int
    num_infinite: int
    num_numbers: int
    minimum: float | None
    maximum: float | None
    operation: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def find_fault(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, Fault | None]:
    """Return the loss of a forward pass, and the first tensor in it, or in the backward pass, that is not finite.

    Args:
        model: whose modules are watched; its gradients are not touched.
        forward: computes the loss with it.
    Cost: two passes over every tensor; autograd notes a traceback for each operation.
    """
    watch = _Watch(model)
    with watch.hooked(), torch.autograd.set_detect_anomaly(True, check_nan=False):
        loss = forward()
        fault = watch.first
        if fault is None and count_non_finite(loss):
            fault = _fault("loss", "loss", "loss", loss.detach())
        if fault is None and loss.requires_grad:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            fault = watch.first_gradient or _first_of_weights(model, parameters, gradients)
            if fault is not None:
                watch.is_quiet = True
                operation = _operation(loss, parameters)
                fault = Fault(**{**asdict(fault), "operation": operation})
    return loss, fault


class _Watch:
    """Hooks that look at every tensor that passes."""

    def __init__(self, model: nn.Module) -> None:
        self.first: Fault | None = None
        self.is_quiet = False
        self._names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._model = model
        self._gradients: list[tuple[int, str, Fault]] = []

    @property
    def first_gradient(self) -> Fault | None:
        """The first bad gradient: of the tensor that carried it, what took it in rather than what gave it out."""
        if not self._gradients:
            return None
        first = self._gradients[0][0]
        same = [(side, fault) for key, side, fault in self._gradients if key == first]
        taken_in = [fault for side, fault in same if side != "output"]
        return taken_in[-1] if taken_in else same[0][1]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch inside."""
        handles: list[Any] = []
        for module in self._model.modules():
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after))
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                owner, _, own = name.rpartition(".")
                hook = partial(self._see_gradient, owner or type(self._model).__name__, "weight", own, id(parameter))
                handles.append(parameter.register_hook(hook))
        try:
            yield
        finally:
            self.is_quiet = True
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names[id(module)]
        for own, parameter in module.named_parameters(recurse=False):
            self._see(name, "weight", own, parameter)
        for own, buffer in module.named_buffers(recurse=False):
            self._see(name, "weight", own, buffer)
        given = (*args, kwargs) if kwargs else args
        self._watch(name, "input", given)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        del args
        self._watch(self._names[id(module)], "output", output)

    def _watch(self, name: str, side: str, value: Any) -> None:
        for place, tensor in named_tensors(value, side):
            self._see(name, side, place, tensor)
            if self.first is None and tensor.requires_grad and not self.is_quiet:
                tensor.register_hook(partial(self._see_gradient, name, side, place, id(tensor)))

    def _see(self, name: str, kind: str, place: str, tensor: Tensor) -> None:
        if self.first is None and not self.is_quiet and count_non_finite(tensor):
            self.first = _fault(name, kind, place, tensor.detach())

    def _see_gradient(self, name: str, side: str, place: str, key: int, gradient: Tensor) -> None:
        if not self.is_quiet and count_non_finite(gradient):
            whose = ", made by what comes after it" if side == "output" else ""
            fault = _fault(name, "gradient", f"gradient of the {place}{whose}", gradient.detach())
            self._gradients.append((key, side, fault))


def _first_of_weights(model: nn.Module, parameters: list[nn.Parameter], gradients: Any) -> Fault | None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and count_non_finite(gradient):
            owner, _, own = names[id(parameter)].rpartition(".")
            return _fault(owner or type(model).__name__, "gradient", f"gradient of the {own}", gradient)
    return None


def _operation(loss: Tensor, parameters: list[nn.Parameter]) -> str:
    """Return what autograd's anomaly mode says of the operation whose backward gave NaN; "" for infinities, which it does not look for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True, check_nan=True):
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            lines = [line.strip() for each in caught for line in str(each.message).splitlines()]
            called = [f"{place}: {code}" for place, code in pairwise(lines) if place.startswith("File ")]
            own = [each for each in called if "/torch/" not in each]
            return f"{error} {(own or called or [''])[-1]}".strip()
    return ""


def _fault(module: str, kind: str, tensor: str, value: Tensor) -> Fault:
    numbers = value.coalesce().values() if value.is_sparse else value
    numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
    finite = (
        numbers[torch.isfinite(numbers)].double() if numbers.device.type != "mps" else numbers[torch.isfinite(numbers)]
    )
    num_nan = int(torch.isnan(numbers).sum())
    return Fault(
        module=module,
        kind=kind,
        tensor=tensor,
        num_nan=num_nan,
        num_infinite=int((~torch.isfinite(numbers)).sum()) - num_nan,
        num_numbers=numbers.numel(),
        minimum=float(finite.min()) if finite.numel() else None,
        maximum=float(finite.max()) if finite.numel() else None,
    )


def describe_fault(fault: Fault) -> str:
    """Return one sentence."""
    numbers = [f"{fault.num_nan:,} NaN"] if fault.num_nan else []
    numbers += [f"{fault.num_infinite:,} infinite"] if fault.num_infinite else []
    has_range = fault.minimum is not None and fault.maximum is not None and math.isfinite(fault.minimum)
    span = f"; the others from {fault.minimum:g} to {fault.maximum:g}" if has_range else ""
    return f"{fault.module}: {fault.tensor} ({' and '.join(numbers)} of {fault.num_numbers:,} numbers{span})"
