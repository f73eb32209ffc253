"""Training and evaluation mode of a model, set and put back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["evaluation_mode", "training_mode"]


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in training mode, unless it is; afterwards every module has the mode that it had before.

    A model that already trains is left as it is, so that layers which the user put in eval mode (frozen BatchNorm) stay there.
    """
    modes = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        yield
    finally:
        _restore(modes)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode and autograd in inference mode; afterwards both are as they were, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        _restore(modes)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
