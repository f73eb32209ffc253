"""Numbers with fewer bits: autocast around what the user's loop does, losses and updates outside of it in fp32."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = [
    "Autocast",
    "FullPrecision",
    "Precision",
    "TensorFloat32",
    "check_fits_model",
    "make_scaler",
    "resolve_precision",
]

_NAMES = ("fp32", "tf32", "bf16", "fp16")
_ALIASES = {
    "float32": "fp32",
    "32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
}


class Precision:
    """How numbers are represented while batches go by. This one leaves everything as it is."""

    name = "fp32"
    is_plain = True
    """whether gradients and updates need no context of their own"""
    needs_scaler = False
    """whether gradients may underflow, so that the loss must be scaled"""
    note = ""
    """what people should know about it on this machine"""

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which batches go through the model."""
        del model
        return nullcontext()

    def outside(self) -> AbstractContextManager[Any]:
        """Return the context in which gradients are computed and applied, inside of the other one."""
        return nullcontext()

    def to_float32(self, loss: Tensor) -> Tensor:
        """Return the loss, widened where this precision may have narrowed it."""
        return loss

    def forget_casts(self) -> None:
        """The weights have changed: narrow copies of them are not valid any more."""

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `around` switches on, in words and with who does it: for `Trainer.explain`."""
        return []


class FullPrecision(Precision):
    """What PyTorch does by itself."""


class TensorFloat32(Precision):
    """Matrix products and convolutions with the 10-bit mantissa of TF32; everything is stored in fp32.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "TensorFloat-32 (TF32) on Ampere (and later) devices".
    """

    name = "tf32"

    @contextmanager
    def _set(self) -> Iterator[None]:
        cudnn: Any = torch.backends.cudnn
        places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv]
        before = [place.fp32_precision for place in places]
        for place in places:
            place.fp32_precision = "tf32"
        try:
            yield
        finally:
            for place, value in zip(places, before, strict=True):
                place.fp32_precision = value

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which products are TF32; the global switches are put back afterwards."""
        del model
        return self._set()

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `around` switches on."""
        return [("matrix products in tf32", self.around)]


class Autocast(Precision):
    """torch's autocast over a whole phase, with the outputs of the model widened to fp32 before a loss sees them.

    Over the phase rather than inside of the model's forward: in a loop of one's own a part of the model may be called, the
    two networks of a GAN say. The root module's outputs are widened by a forward hook, which is there during the phase
    only; where the root is a container without a forward of its own, its children are the roots.

    Source: https://docs.pytorch.org/docs/stable/amp.html
    """

    def __init__(
        self, name: str, device: torch.device, map_tensors: Callable[[Any, Callable[[Tensor], Tensor]], Any]
    ) -> None:
        self.name = name
        self.is_plain = False
        self.needs_scaler = name == "fp16"
        self._dtype = torch.bfloat16 if name == "bf16" else torch.float16
        self._device_type = device.type
        self._map_tensors = map_tensors
        self._hooked: set[int] = set()
        self.note = _why_slow(name) if device.type == "cpu" else ""

    @contextmanager
    def _around(self, model: nn.Module) -> Iterator[None]:
        hooks = [
            (root, root.register_forward_hook(self._widen_output))
            for root in _roots(model)
            if id(root) not in self._hooked  # an evaluation inside of the training phase
        ]
        self._hooked.update(id(root) for root, _ in hooks)
        try:
            with torch.autocast(self._device_type, dtype=self._dtype):
                yield
        finally:
            # Casts made in inference mode must not reach the training phase around this one.
            self.forget_casts()
            for root, hook in hooks:
                hook.remove()
                self._hooked.discard(id(root))

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which products are narrow and what the model returns is fp32."""
        return self._around(model)

    def outside(self) -> AbstractContextManager[Any]:
        """Return the context without autocast: backward follows the forward's types, the update is fp32."""
        return torch.autocast(self._device_type, enabled=False)

    def to_float32(self, loss: Tensor) -> Tensor:
        """Return the loss in fp32."""
        return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss

    def forget_casts(self) -> None:
        """Drop the narrow weights: autocast keeps them as long as its outermost context lasts, here a whole epoch."""
        torch.clear_autocast_cache()

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `around` switches on."""
        return [(f"autocast to {self.name}, outputs widened to fp32", self.around)]

    def _widen_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        return self._map_tensors(output, self.to_float32)


def resolve_precision(
    name: str, device: torch.device, map_tensors: Callable[[Any, Callable[[Tensor], Tensor]], Any]
) -> Precision:
    """Turn a name into a precision that this device has.

    Args:
        name: "fp32", "tf32", "bf16" or "fp16".
        device: where the model is.
        map_tensors: applies a function to every tensor of an output, however nested.
    Raises:
        ArgumentError: an unknown name, or one that the device does not have.
    """
    known = _ALIASES.get(str(name).lower(), str(name).lower())
    if known not in _NAMES:
        raise ArgumentError(f"precision={name!r} is unknown. {nearest(str(name), _NAMES)}")
    if known == "fp32":
        return FullPrecision()
    if known == "tf32":
        has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        if not has_it:
            raise ArgumentError(
                f'precision="tf32" needs a CUDA device of compute capability 8.0 or more; this trainer runs on {device}. '
                f'Use "fp32", or "bf16".'
            )
        return TensorFloat32()
    if not torch.amp.is_autocast_available(device.type):
        raise ArgumentError(f'precision="{known}" needs autocast, which torch does not have on {device}. Use "fp32".')
    if known == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ArgumentError(f'precision="bf16" is only emulated by {torch.cuda.get_device_name(device)}. Use "fp16".')
    return Autocast(known, device, map_tensors)


def check_fits_model(precision: Precision, model: nn.Module) -> None:
    """Refuse a narrow precision for weights that autocast leaves alone, or that are narrow already.

    Raises:
        ArgumentError: names the type.
    """
    if not isinstance(precision, Autocast):
        return
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if dtypes == {torch.float64}:
        raise ArgumentError(
            f'precision="{precision.name}" does nothing for this model: its weights are float64, which autocast leaves alone. '
            f"Use model.float(), or leave precision out."
        )
    if precision.needs_scaler and torch.float16 in dtypes:
        raise ArgumentError(
            'precision="fp16" keeps the weights in fp32 and narrows what is computed; this model\'s weights are float16 already. '
            "Use model.float()."
        )


def make_scaler(precision: Precision, device: torch.device, arguments: Mapping[str, Any]) -> torch.amp.GradScaler:
    """Return the scaler of one optimizer; it does nothing where the precision needs none.

    Raises:
        ArgumentError: arguments for a scaler that there is not, or that it refuses.
    """
    if arguments and not precision.needs_scaler:
        raise ArgumentError(
            f'scaler_args {sorted(arguments)} were given with precision="{precision.name}", which scales nothing. They go with "fp16".'
        )
    for name, value in arguments.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name != "enabled" and (not is_number or not 0 < value < float("inf")):
            raise ArgumentError(f"scaler_args[{name!r}]={value!r} is no number above 0. Give one, or leave it out.")
    try:
        return torch.amp.GradScaler(device.type, enabled=precision.needs_scaler, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise ArgumentError(f"torch.amp.GradScaler refused scaler_args: {error}") from error


def _why_slow(name: str) -> str:
    """Say where a CPU has no instructions for these numbers: then they cost more than they save."""
    has: Mapping[str, Any] = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return ""
    wanted = ("amx_bf16", "avx512_bf16") if name == "bf16" else ("amx_fp16", "avx512_fp16")
    if any(has.get(each) for each in wanted):
        return ""
    return (
        f'precision="{name}" will not pay here: this CPU has neither {" nor ".join(wanted)}, so that each number is widened to be '
        f'computed with. "fp32" is faster.'
    )


def _roots(model: nn.Module) -> list[nn.Module]:
    """Return the modules that a loop calls: the model, or the children of a container that cannot be called."""
    if type(model).forward is not nn.Module.forward:
        return [model]
    return [root for child in model.children() for root in _roots(child)]
