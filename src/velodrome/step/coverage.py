"""Whether the optimizers hold what the model wants to learn: said in words before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer

__all__ = ["describe_uncovered"]

_MAX_NAMES = 3


def describe_uncovered(model: nn.Module, optimizers: Iterable[Optimizer]) -> list[str]:
    """Return a sentence when trainable parameters of the model are in no optimizer, nothing when all are.

    Not an error: training a part of a model by giving the optimizer only that part is common, and only wasteful. With
    parameters in the optimizer that the model does not have it is more likely a mistake: layers were replaced after the
    optimizer was made. Such parameters alone mean nothing, a loss may have some of its own.
    """
    held = {id(p): p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    own = dict(model.named_parameters())
    left_out = [name for name, parameter in own.items() if parameter.requires_grad and id(parameter) not in held]
    if not left_out:
        return []
    shown = ", ".join(left_out[:_MAX_NAMES]) + (", ..." if len(left_out) > _MAX_NAMES else "")
    count = len(left_out)
    what = f"{count} trainable parameter{'s are' if count > 1 else ' is'} in no optimizer and will not change: {shown}."
    strangers = held.keys() - {id(parameter) for parameter in own.values()}
    if strangers:
        return [
            f"{what} {len(strangers)} of the {len(held)} that the optimizer holds are none of the model's: if layers were replaced after "
            f"the optimizer was made, make it anew from model.parameters()."
        ]
    return [f"{what} Give them to an optimizer, or spare their gradients with requires_grad_(False)."]
