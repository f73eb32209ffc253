"""BatchNorm statistics for weights that no batch has passed through yet: an average of weights far apart."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  (what torch's update_bn looks for)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

__all__ = ["recompute_statistics"]


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> int:
    """Set the running mean and variance of every BatchNorm layer to the means over all batches.

    `torch.optim.swa_utils.update_bn`, except that a batch may be anything that `forward` takes, and that layers which the user
    froze in eval mode stay as they are. Without any batch nothing changes.

    Args:
        model: in training mode.
        batches: of the training data, on the device.
        forward: passes a batch through the model.
    Returns:
        How many batches there were.
    Cost: one forward pass over the data.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    num_batches = 0
    try:
        with _without_compilation():
            for batch in batches:
                if not num_batches:
                    for layer in layers:
                        layer.reset_running_stats()
                        layer.momentum = None  # the mean over all batches, not a moving one
                num_batches += 1
                forward(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return num_batches


def _without_compilation() -> AbstractContextManager[Any]:
    """Return the context in which a compiled model runs as it is: for another momentum every layer would be compiled anew."""
    # Importing the compiler takes a second; what was not imported has compiled nothing.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
