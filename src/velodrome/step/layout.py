"""The order of numbers in memory that convolutions like best: channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from velodrome.step.precision import Precision

__all__ = ["use_channels_last"]

_FORMATS = (
    ((nn.Conv2d, nn.ConvTranspose2d), torch.channels_last),
    ((nn.Conv3d, nn.ConvTranspose3d), torch.channels_last_3d),
)


def use_channels_last(model: nn.Module, wish: bool | str, *, device: torch.device, precision: Precision) -> int:
    """Reorder the weights of the model's convolutions in place, where that is wanted.

    The weights alone: a convolution takes the order of its weights, and what follows takes the order of its input. An input in
    the other order is reordered by the first convolution; doing that before measured no gain (two-core CPU, 3 channels).
    Results are those of the other order up to rounding. Measured on one core with avx512_bf16: 0.8 of the time of a step in fp32,
    0.6 of that in bf16, for a net of two convolutions.

    Args:
        model: on its device.
        wish: True, False, or "auto": on CPUs, and on CUDA with a precision that has tensor cores.
        device: the model's.
        precision: of the forward passes.
    Returns:
        The number of convolutions whose weights were reordered.
    Raises:
        ArgumentError: another wish, or True for a model without convolutions.
    """
    if not isinstance(wish, bool) and wish != "auto":
        raise ArgumentError(f'channels_last={wish!r} is unknown. It must be True, False or "auto".')
    if wish is False:
        return 0
    pays = device.type == "cpu" or (device.type == "cuda" and precision.name != "fp32")
    if wish == "auto" and not pays:
        return 0
    found = [
        (module.weight, layout)
        for module in model.modules()
        for kinds, layout in _FORMATS
        if isinstance(module, kinds) and not is_lazy(module.weight)
    ]
    if wish is True and not found:
        raise ArgumentError(
            f"channels_last=True does nothing for {type(model).__name__}, which has no convolution with weights. Leave it out."
        )
    for weight, layout in found:
        weight.data = weight.data.contiguous(memory_format=layout)
    return len(found)
