"""Transforms that change numbers: to floats, normalised, brighter, noisier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.base import Transform, check_images, per_sample
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["ColorJitter", "GaussianNoise", "Normalize", "ToFloat"]

_FIXED_POINT = 1 << 20


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

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean = tuple(mean) if not isinstance(mean, (int, float)) else (float(mean),)
        self.std = tuple(std) if not isinstance(std, (int, float)) else (float(std),)
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}. Give one for all, or one a channel, of both."
            )
        if not all(value > 0 and math.isfinite(value) for value in self.std):
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
                torch.tensor(self.mean, dtype=dtype).view(shape).to(device),
                torch.tensor(self.std, dtype=dtype).view(shape).to(device),
            )
        return self._constants[key]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_constants": {}}


class ColorJitter(Transform):
    """Change the brightness and the contrast of each image, by factors of its own; uint8 stays uint8.

    Brightness multiplies by a factor from [max(0, 1 - brightness), 1 + brightness]; contrast stretches the distance from the image's mean
    grey by one from [max(0, 1 - contrast), 1 + contrast], in this order always (torchvision draws the order). What leaves 0 to 255, or
    0 to 1 for floats, is cut off: apply it before Normalize.

    Args:
        brightness, contrast: how far the factor lies from 1 at most; 0 leaves that out.
    Shapes: (batch, channels, height, width) or (batch, height, width); three channels are red, green and blue.
    """

    num_draws = 2

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ArgumentError(
                    f"{name}={value!r} is not a distance from 1. It must be a number of at least 0: 0.4 draws factors from 0.6 to 1.4."
                )
        self.brightness = brightness
        self.contrast = contrast

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images, brighter or darker, with more or less contrast."""
        check_images(batch, self)
        images, largest = _values(batch)
        if self.brightness:
            images = _rounded(
                images * per_sample(_factors(draws.numbers[:, 0], self.brightness), batch), batch, largest
            )
        if self.contrast:
            factor = per_sample(_factors(draws.numbers[:, 1], self.contrast), batch)
            grey = per_sample(_mean_grey(images), batch)
            images = _rounded(images * factor + (1 - factor) * grey, batch, largest)
        return images.to(batch.dtype)


class GaussianNoise(Transform):
    """Add normal noise to every number; uint8 becomes floats 0 to 1 before.

    Args:
        std: standard deviation of the noise.
    Cost: about four passes over eight bytes for each four numbers; see `counters.normals` for what it draws.
    """

    def __init__(self, std: float) -> None:
        if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 < std < math.inf:
            raise ArgumentError(f"std={std!r} is not a standard deviation. It must be a number above 0.")
        self.std = std

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the batch with noise."""
        batch = _TO_FLOAT(batch, draws)
        return batch + draws.normal(batch.shape[1:]).mul_(self.std).to(batch.dtype)


_TO_FLOAT = ToFloat()


def _factors(numbers: Tensor, distance: float) -> Tensor:
    low = max(0.0, 1 - distance)
    return numbers * (1 + distance - low) + low


def _values(batch: Tensor) -> tuple[Tensor, float]:
    """Return the images as floats and the largest number that they can have."""
    if batch.is_floating_point():
        return batch, 1.0
    if batch.dtype != torch.uint8:
        raise DataError(f"ColorJitter knows uint8 and floats, and was given {batch.dtype}. Convert the data first.")
    return batch.to(torch.float32), 255.0


def _rounded(images: Tensor, batch: Tensor, largest: float) -> Tensor:
    """Cut off what lies outside; integers have no fractions, which are cut off too, as torchvision does."""
    images = images.clamp_(0, largest)
    return images if batch.is_floating_point() else images.floor_()


def _mean_grey(images: Tensor) -> Tensor:
    """Return the mean grey of each image, shape (batch,).

    In whole numbers, whose sum is the same in any order: how a sum of floats is grouped depends on the shape of the batch.
    """
    height, width = images.shape[-2:]
    sums = (images * _FIXED_POINT).to(torch.int64).flatten(-2).sum(-1)
    if images.ndim == 4 and images.shape[1] == 3:
        weights = (306, 601, 117)  # of 1024: 0.299, 0.587, 0.114, as the eye sees red, green and blue
        totals = sum(sums[:, channel] * weight for channel, weight in enumerate(weights))
        count = 1024 * height * width
    else:
        totals = sums.flatten(1).sum(-1) if sums.ndim > 1 else sums
        count = height * width * (images.numel() // max(1, len(images) * height * width))
    assert not isinstance(totals, int)
    return (totals.to(torch.float64) / (count * _FIXED_POINT)).to(images.dtype)
