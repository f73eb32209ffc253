"""Losses by name, and what each one demands of outputs and targets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NO_LOSS", "Loss", "known_names", "resolve_loss"]

Kind = Literal["classes", "equal_shape", "probability", "other"]
"""What targets look like: class indices; numbers shaped like the output; numbers in 0..1 shaped like it; unknown."""

Divisor = Literal["samples", "positions", "items"]
"""What a loss is a mean over: samples; the positions that are kept, where a sample has several; always what `count_items` says."""


@dataclass(frozen=True)
class Loss:
    """A loss and what is known of it."""

    name: str
    function: Callable[[Any, Any], Any]
    kind: Kind = "other"
    ignore_index: int = -100
    """the label that cross entropy and NLL leave out"""
    wants_probabilities: bool = False
    """the output must lie in 0..1 (BCE without logits)"""
    arguments: dict[str, Any] = field(default_factory=dict)
    divisor: Divisor = "samples"
    """what the mean over a batch is divided by"""

    @property
    def is_binary(self) -> bool:
        """Each output is a yes or no of its own."""
        return self.kind == "probability" or self.name in ("soft_margin", "multilabel_soft_margin")

    @property
    def binary_threshold(self) -> float:
        """Above it an output means class 1."""
        return 0.0 if self.name in ("bce_with_logits", "soft_margin", "multilabel_soft_margin") else 0.5

    def count_items(self, output: Tensor, target: Tensor) -> Tensor | float:
        """Return what torch's cross entropy or NLL divided by to get its mean: the kept targets, or the sum of their weights.

        Label smoothing does not change it. Class probabilities are divided by their number, whatever they weigh.

        Shapes: as the loss has them. Returns a scalar on the device, a plain number where nothing needs to be computed.
        """
        if target.is_floating_point():
            return output.numel() / output.shape[min(1, output.ndim - 1)]
        is_kept = target != self.ignore_index
        weight: Tensor | None = getattr(self.function, "weight", None)
        if weight is None:
            return is_kept.sum()
        weights = weight.detach()[target.masked_fill(~is_kept, 0)]
        return torch.where(is_kept, weights, 0.0).sum(dtype=torch.promote_types(weights.dtype, torch.float32))


NO_LOSS = Loss("no_loss", lambda output, target: torch.zeros(()))
"""For an evaluation that wants metrics only; targets may be anything."""

_BY_NAME: dict[str, tuple[type[nn.Module], Callable[..., Tensor], Kind, dict[str, Any]]] = {
    "cross_entropy": (nn.CrossEntropyLoss, F.cross_entropy, "classes", {}),
    "nll": (nn.NLLLoss, F.nll_loss, "classes", {}),
    "mse": (nn.MSELoss, F.mse_loss, "equal_shape", {}),
    "l1": (nn.L1Loss, F.l1_loss, "equal_shape", {}),
    "smooth_l1": (nn.SmoothL1Loss, F.smooth_l1_loss, "equal_shape", {}),
    "huber": (nn.HuberLoss, F.huber_loss, "equal_shape", {}),
    "bce": (nn.BCELoss, F.binary_cross_entropy, "probability", {}),
    "bce_with_logits": (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, "probability", {}),
    # "mean" divides by every element; "batchmean" is the divergence that textbooks define, and what PyTorch's page recommends.
    "kl_div": (nn.KLDivLoss, F.kl_div, "equal_shape", {"reduction": "batchmean"}),
    "poisson_nll": (nn.PoissonNLLLoss, F.poisson_nll_loss, "equal_shape", {}),
    "soft_margin": (nn.SoftMarginLoss, F.soft_margin_loss, "equal_shape", {}),
    "multi_margin": (nn.MultiMarginLoss, F.multi_margin_loss, "other", {}),
    "multilabel_soft_margin": (nn.MultiLabelSoftMarginLoss, F.multilabel_soft_margin_loss, "other", {}),
}
_ALIASES = {
    "bcewithlogits": "bce_with_logits",
    "nll_loss": "nll",
    "mse_loss": "mse",
    "l1_loss": "l1",
    "kldiv": "kl_div",
    "mae": "l1",
}


def known_names() -> list[str]:
    """Return the names that `loss=` accepts."""
    return sorted(_BY_NAME)


def resolve_loss(loss: object, arguments: dict[str, Any] | None = None) -> Loss | None:
    """Turn what the user gave as `loss` into a function `(output, target) -> scalar` with what is known of it.

    Args:
        loss: a name, a module, a function, or None for a model that returns its loss.
        arguments: for a name: the arguments of the `torch.nn` class, such as `label_smoothing`.
    Raises:
        ArgumentError: an unknown name or argument (the nearest is shown), or something that cannot be called.
    """
    if loss is None:
        if arguments:
            raise ArgumentError(
                f"loss_args {sorted(arguments)} were given without a loss. They go with a loss given by name."
            )
        return None
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        name = _ALIASES.get(loss.lower(), loss.lower())
        if name not in _BY_NAME:
            raise ArgumentError(
                f"loss={loss!r} is not a known loss. {nearest(loss, _BY_NAME)} Or give a function (output, target) -> scalar."
            )
        return _named(name, arguments or {})
    if inspect.isclass(loss):
        raise ArgumentError(f"loss={loss!r} is a class. Give an instance: {loss.__name__}().")
    if not callable(loss):
        raise ArgumentError(
            f"loss={loss!r} cannot be called. Give a name, a torch.nn loss, or a function (output, target) -> scalar."
        )
    if arguments:
        raise ArgumentError(
            f"loss arguments {sorted(arguments)} were given with a loss object. They go with a loss given by name."
        )
    if getattr(loss, "reduction", "mean") in ("sum", "none"):
        raise ArgumentError(
            f"loss={loss!r} has reduction={loss.reduction!r}, which is no mean. The loop weights means by their samples: "  # type: ignore[attr-defined]
            f"leave reduction out, or give step_fn= with which you compute the loss yourself."
        )
    for name, (module, function, kind, _) in _BY_NAME.items():
        if loss is function or type(loss) is module:
            ignore_index = getattr(loss, "ignore_index", -100)
            has_items = ignore_index != -100 or getattr(loss, "weight", None) is not None
            divisor = _divisor(kind, has_items) if getattr(loss, "reduction", "mean") == "mean" else "samples"
            return Loss(name, loss, kind, ignore_index, wants_probabilities=name == "bce", divisor=divisor)
    return Loss(getattr(loss, "__name__", type(loss).__name__), loss)


def _named(name: str, arguments: dict[str, Any]) -> Loss:
    module, function, kind, defaults = _BY_NAME[name]
    allowed = [
        parameter for parameter in inspect.signature(module).parameters if parameter not in ("size_average", "reduce")
    ]
    for argument in arguments:
        if argument not in allowed:
            raise ArgumentError(f"loss {name!r} has no argument {argument!r}. {nearest(argument, allowed)}")
    if arguments.get("reduction", "mean") in ("none", "sum"):
        raise ArgumentError(
            f"loss {name!r} with reduction={arguments['reduction']!r} is no mean. The loop weights means by their samples: leave reduction out."
        )
    try:
        merged = {**defaults, **{key: _as_tensor(value) for key, value in arguments.items()}}
        # The plain function when nothing is set: the same arithmetic as the module, without its call machinery (1 microsecond a step).
        call = module(**merged) if merged else function
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"torch.nn.{module.__name__} refused its arguments: {error}") from error
    has_items = "ignore_index" in merged or merged.get("weight") is not None
    return Loss(
        name,
        call,
        kind,
        merged.get("ignore_index", -100),
        wants_probabilities=name == "bce",
        arguments=arguments,
        divisor=_divisor(kind, has_items),
    )


def _divisor(kind: Kind, has_items: bool) -> Divisor:
    """Return what the mean is over. Only cross entropy and NLL leave targets out, or divide by weights."""
    if kind != "classes":
        return "samples"
    return "items" if has_items else "positions"


def _as_tensor(value: Any) -> Any:
    """Turn a list into a tensor: class weights as a recipe writes them."""
    return torch.as_tensor(value, dtype=torch.get_default_dtype()) if isinstance(value, list) else value
