"""What cannot be recorded, in words: known before anything is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from velodrome.step.bare import unwrapped_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from velodrome.step.precision import Precision
    from velodrome.step.updates import Updates

__all__ = ["layout_of", "reason_against", "reason_against_modules"]

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def reason_against(modules: Sequence[nn.Module], updates: Updates, precision: Precision, device: torch.device) -> str:
    """Return why steps of this kind cannot be recorded; "" when nothing is known against it.

    Args:
        modules: the model, and the loss where that is a module.
        updates: of the only optimizer.
        precision: of the forward passes.
        device: that records.
    """
    optimizer: Any = updates.optimizer  # Any: torch's attributes that not every optimizer has
    name = type(optimizer).__name__
    if updates.world.size > 1:
        return f"{updates.world.size} processes sum their gradients in the middle of each update"
    if updates.accumulate > 1:
        return f"an update has {updates.accumulate} micro-batches (accumulate)"
    if precision.needs_scaler:
        return 'fp16 reads in each update whether the one before was made. Use precision="bf16"'
    if type(optimizer) not in _FUSED or not all(group.get("fused") for group in optimizer.param_groups):
        return (
            f"{name} is not fused. Give the optimizer by name (sgd, adam or adamw), or make it with fused=True"
            if type(optimizer) in _FUSED
            else f"of {name} torch has no fused version that takes its learning rate from the device. Use sgd, adam or adamw"
        )
    if not updates.guard.is_on_device:
        return 'the policy on_nonfinite reads every loss before it is used. Leave it at "stop"'
    if unwrapped_step(optimizer) is None and not getattr(optimizer.step, "_wrapped_by_lr_sched", False):
        return f"{name}.step is not torch's own: another library has replaced it"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return f"{name} has hooks, whose Python would not run in a replay"
    return reason_against_modules(modules, precision) or _reason_against_parameters(updates.parameters, device)


def reason_against_modules(modules: Sequence[nn.Module], precision: Precision) -> str:
    """Return which hooks are against it; those of the precision are plain arithmetic."""
    if any(getattr(torch_module, name, None) for name in _GLOBAL_HOOKS):
        return "hooks are registered for all modules, whose Python would not run in a replay"
    for root in modules:
        for name, module in root.named_modules():
            own = vars(module)
            hooks = [hook for kind in _HOOKS for hook in (own.get(kind) or {}).values()]
            if any(getattr(hook, "__self__", None) is not precision for hook in hooks):
                return f"the module {name or type(module).__name__} has hooks, whose Python would not run in a replay"
    return ""


def _reason_against_parameters(parameters: Iterable[nn.Parameter], device: torch.device) -> str:
    for parameter in parameters:
        if is_lazy(parameter):
            return "the model has parameters without a shape before its first batch"
        if parameter.device.type != device.type:
            return f"a parameter is on {parameter.device}, and the trainer on {device}"
        hooks = [getattr(parameter, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")]
        if any(hooks):
            return "a parameter has hooks, whose Python would not run in a replay"
    return ""


def layout_of(tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return what a recording relies on, to be compared later: where tensors lie, what is trained, in which mode modules are."""
    places = tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors)
    return places, tuple(each.training for module in modules for each in module.modules())
