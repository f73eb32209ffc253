"""Transforms that change numbers: to floats, normalised, noisier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.arguments import check_number, check_numbers
from velodrome.data.transforms.base import Transform
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["GaussianNoise", "Normalize", "ToFloat"]


class ToFloat(Transform):
    """Turn integers 0 to 255 into floats 0 to 1, as torchvision's ToTensor does, bit for bit; floats stay as they are.

    Data kept as uint8 take a quarter of the memory, and of the bandwidth of a gather.
    """

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return floats of torch's default dtype.

        Raises:
            DataError: integers other than uint8, whose range is not known.
        """
        if batch.is_floating_point():
            return batch
        if batch.dtype != torch.uint8:
            raise DataError(
                f"ToFloat divides uint8 by 255, and was given {batch.dtype}. Convert the data first: x.float() / largest."
            )
        return batch.to(torch.get_default_dtype()).div_(255)


class Normalize(Transform):
    """Subtract a mean and divide by a standard deviation, channel by channel; uint8 becomes floats 0 to 1 before.

    Args:
        mean, std: one number for all, or one a channel: the third dimension from the end.
    Raises:
        ArgumentError: lengths that differ, or a deviation that is not above 0.
        DataError: another number of channels.
    """

    def __init__(self, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor) -> None:
        rule = "Give one number for all, or a list of one a channel: Normalize(0.286, 0.353)."
        self.mean = check_numbers("mean", mean, "a mean", rule)
        self.std = check_numbers("std", std, "a standard deviation", rule)
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}. Give one for all, or one a channel, of both."
            )
        if not all(value > 0 for value in self.std):
            raise ArgumentError(f"std={self.std} divides the data. Every number of it must be above 0.")
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the normalised batch."""
        batch = _TO_FLOAT(batch, draws)
        if len(self.mean) > 1 and (batch.ndim < 4 or batch.shape[-3] != len(self.mean)):
            raise DataError(
                f"Normalize has {len(self.mean)} means, one a channel, and a batch of shape {tuple(batch.shape)}: (batch, channels, height, "
                f"width) would have {len(self.mean)} at the second place. Give one mean and one std, or as many as there are channels."
            )
        mean, std = self._on(batch.device, batch.dtype)
        return batch.sub(mean).div_(std)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return mean and std on the device: sent there once."""
        key = device, dtype
        if key not in self._constants:
            shape = (-1, 1, 1) if len(self.mean) > 1 else ()
            self._constants[key] = (
                torch.tensor(self.mean, dtype=dtype).view(shape).to(device),  # SYNC: once a device and dtype
                torch.tensor(self.std, dtype=dtype).view(shape).to(device),  # SYNC: once a device and dtype
            )
        return self._constants[key]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_constants": {}}


class GaussianNoise(Transform):
    """Add normal noise to every number; uint8 becomes floats 0 to 1 before.

    Args:
        std: standard deviation of the noise.
    Cost: about four passes over eight bytes for each four numbers; see `counters.normals` for what it draws.
    """

    def __init__(self, std: float) -> None:
        self.std = check_number("std", std, "a standard deviation", "It must be a number above 0.", above=0)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the batch with noise."""
        batch = _TO_FLOAT(batch, draws)
        return batch + draws.normal(batch.shape[1:]).mul_(self.std).to(batch.dtype)


_TO_FLOAT = ToFloat()
