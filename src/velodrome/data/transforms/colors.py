"""Transforms that change colours: brightness, contrast, saturation and hue."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.arguments import check_number
from velodrome.data.transforms.base import Transform, check_images, per_sample
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["ColorJitter"]

_FIXED_POINT = 1 << 20
_TOLERANCE = 0.5
_SECTORS = ((0, 2, 1, 1, 3, 0), (3, 0, 0, 2, 1, 1), (1, 1, 3, 0, 0, 2))
"""of v, p, q and t, which one is red, green and blue in each sixth of the colour circle"""


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue of each image, by factors of its own; uint8 stays uint8.

    Brightness multiplies by a factor from [max(0, 1 - brightness), 1 + brightness]; contrast stretches the distance from the image's mean
    grey by one from [max(0, 1 - contrast), 1 + contrast], saturation that from each pixel's grey; hue turns the colour circle by a share from
    [-hue, hue]. In this order always (torchvision draws the order). What leaves 0 to 255, or 0 to 1 for floats, is cut off: apply it
    before Normalize. For the same factors the results are those of torchvision's functions within 1e-6 (hue 1e-5); of uint8 one level, where
    a rounding error decides.

    Args:
        brightness, contrast, saturation: how far the factor lies from 1 at most; 0 leaves that out.
        hue: how far the circle is turned at most, 0 to 0.5.
    Shapes: (batch, channels, height, width) or (batch, height, width); three channels are red, green and blue. Grey images (one channel) have
        neither saturation nor hue, and stay as they are by these two.
    Raises:
        ArgumentError: a number that cannot be.
        DataError: integers other than uint8; floats far outside of 0 to 1 in the first batch; saturation or hue of two channels, or of more
            than three.
    Cost: brightness and contrast a few passes over the images as floats; saturation two more, hue about thirty.
    Source: torchvision.transforms.v2.functional.adjust_brightness and its like.
    """

    num_draws = 4

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        rule = "It must be a number of at least 0: 0.4 draws factors from 0.6 to 1.4."
        self.brightness = check_number("brightness", brightness, "a distance from 1", rule, least=0)
        self.contrast = check_number("contrast", contrast, "a distance from 1", rule, least=0)
        self.saturation = check_number("saturation", saturation, "a distance from 1", rule, least=0)
        rule = "It must be a number from 0 to 0.5: 0.1 turns by up to a tenth of the circle, either way."
        self._is_checked = False
        self.hue = check_number("hue", hue, "a part of the colour circle", rule, least=0)
        if self.hue > 0.5:
            raise ArgumentError(f"hue={self.hue} is not a part of the colour circle. {rule}")

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images in other colours."""
        check_images(batch, self)
        images, largest = _values(batch)
        if not self._is_checked:
            _check_range(batch)
            self._is_checked = True
        numbers = draws.numbers
        if self.brightness:
            images = _rounded(images * per_sample(_factors(numbers[:, 0], self.brightness), batch), batch, largest)
        if self.contrast:
            factor = per_sample(_factors(numbers[:, 1], self.contrast), batch)
            images = _blend(images, per_sample(_mean_grey(images, batch), batch), factor, batch, largest)
        if (self.saturation or self.hue) and _is_coloured(batch):
            if self.saturation:
                factor = per_sample(_factors(numbers[:, 2], self.saturation), batch)
                images = _blend(images, _grey(images, batch).unsqueeze(1), factor, batch, largest)
            if self.hue:
                images = _turn_hue(images, (numbers[:, 3] * 2 - 1) * self.hue, batch)
        return images.to(batch.dtype)


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


def _check_range(batch: Tensor) -> None:
    """Refuse floats that would mostly be cut off; a little noise around 0 to 1 is let through.

    Raises:
        DataError: names the smallest and the largest.
    Cost: a pass over the batch; on CUDA a wait.
    """
    if not batch.is_floating_point() or not batch.numel():
        return
    low, high = (each.item() for each in torch.aminmax(batch))  # SYNC: of the first batch only
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise DataError(
            f"ColorJitter works on floats from 0 to 1 (or on uint8), and was given some from {low:.4g} to {high:.4g}, which it would cut off. Apply it "
            f"before Normalize; where the floats are levels from 0 to 255, give the data as uint8 or divided by 255."
        )


def _is_coloured(batch: Tensor) -> bool:
    """Return whether the images are red, green and blue rather than grey.

    Raises:
        DataError: they are neither.
    """
    channels = batch.shape[1] if batch.ndim == 4 else 1
    if batch.ndim > 4 or channels not in (1, 3):
        raise DataError(
            f"ColorJitter changes saturation and hue of (batch, channels, height, width) with 3 channels, and leaves those with 1 as they are; "
            f"the images have shape {tuple(batch.shape)}. Leave saturation and hue out, or drop what is no colour (an alpha channel)."
        )
    return channels == 3


def _rounded(images: Tensor, batch: Tensor, largest: float) -> Tensor:
    """Cut off what lies outside; integers have no fractions, which are cut off too, as torchvision does."""
    images = images.clamp_(0, largest)
    return images if batch.is_floating_point() else images.floor_()


def _blend(images: Tensor, other: Tensor, factor: Tensor, batch: Tensor, largest: float) -> Tensor:
    return _rounded(images * factor + (1 - factor) * other, batch, largest)


def _grey(images: Tensor, batch: Tensor) -> Tensor:
    """Return the grey of each pixel as the eye sees red, green and blue, (batch, height, width); as whole numbers where the images are."""
    red, green, blue = images.unbind(1)
    grey = red * 0.2989 + green * 0.587 + blue * 0.114
    return grey if batch.is_floating_point() else grey.floor_()


def _mean_grey(images: Tensor, batch: Tensor) -> Tensor:
    """Return the mean grey of each image, shape (batch,).

    In whole numbers, whose sum is the same in any order: how a sum of floats is grouped depends on the shape of the batch.
    """
    grey = _grey(images, batch) if images.ndim == 4 and images.shape[1] == 3 else images
    values = grey.flatten(1)
    sums = (values.to(torch.float64) * _FIXED_POINT).to(torch.int64).sum(1)
    return (sums.to(torch.float64) / (values.shape[1] * _FIXED_POINT)).to(images.dtype)


def _turn_hue(images: Tensor, shares: Tensor, batch: Tensor) -> Tensor:
    """Return red, green and blue with their hue turned by a share of the circle, one an image; whole levels where the images are uint8."""
    is_float = batch.is_floating_point()
    if not is_float:
        images = images * (1 / 255)
    low, value = torch.aminmax(images, dim=1)
    distance = value - low
    is_grey = distance == 0
    saturation = distance / value.masked_fill(is_grey, 1)
    red, green, blue = ((value.unsqueeze(1) - images) / distance.masked_fill(is_grey, 1).unsqueeze(1)).unbind(1)
    is_red, is_green = value == images[:, 0], value == images[:, 1]
    hue = torch.where(is_red, blue - green, torch.where(is_green, red + 2 - blue, green + 4 - red))
    hue = _fraction(hue * (1 / 6) + 1)
    hue = _fraction(hue + shares.to(hue.dtype).view(-1, 1, 1)) * 6
    sector = hue.floor()
    part = hue - sector
    p = (value * (1 - saturation)).clamp_(0, 1)
    q = (value * (1 - saturation * part)).clamp_(0, 1)
    t = (value * (1 - saturation + saturation * part)).clamp_(0, 1)
    choice = _sectors(images.device)[:, sector.to(torch.int64).remainder_(6)].movedim(0, 1)
    turned = torch.stack((value, p, q, t), 1).gather(1, choice)
    return turned if is_float else (turned * (256 - 1e-3)).floor_()


@cache
def _sectors(device: torch.device) -> Tensor:
    """Return the table on the device: sent there once, since sending waits."""
    return torch.tensor(_SECTORS).to(device)  # SYNC: once a device


def _fraction(numbers: Tensor) -> Tensor:
    return numbers - numbers.floor()
