"""Transforms that change the size of images: bilinear, with antialias where they become smaller."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from velodrome.data.transforms.arguments import check_fraction_range, check_range, check_size
from velodrome.data.transforms.base import Transform, as_planes, check_images, in_dtype_of
from velodrome.data.transforms.tables import Table, roots_of_aspects

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["RandomResizedCrop", "Resize"]

_NUM_TRIES = 10


class Resize(Transform):
    """Give images another size, as torchvision's `Resize` does: bilinear, with antialias; uint8 stays uint8.

    Args:
        size: height and width; one number is that of the shorter side, and the other one follows.
    Shapes: (batch, channels, height, width) or (batch, height, width).
    Raises:
        ArgumentError: sizes that cannot be.
        DataError: images without a pixel.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        both = check_size("size", size)
        self.size: int | tuple[int, int] = both if isinstance(size, (tuple, list)) else both[0]

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images in the size."""
        check_images(batch, self)
        height, width = batch.shape[-2:]
        if isinstance(self.size, int):
            short = min(height, width)
            size = (
                (self.size, int(self.size * width / short))
                if height == short
                else (int(self.size * height / short), self.size)
            )
        else:
            size = self.size
        if size == (height, width):
            return batch
        values = as_planes(batch).contiguous()
        values = values if values.dtype in (torch.float32, torch.float64, torch.uint8) else values.to(torch.float32)
        if values.dtype == torch.uint8 and values.device.type != "cpu":
            values = values.to(torch.float32)  # whole numbers are resized on the CPU only
        resized = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
        return in_dtype_of(resized, batch).view(*batch.shape[:-2], *size)


class RandomResizedCrop(Transform):
    """Cut a rectangle of random area, shape and place out of each image, and give it one size; uint8 stays uint8.

    The rectangle is drawn as torchvision's `RandomResizedCrop` draws: area and aspect ten times at most, until it fits, else the largest
    one in the middle. It is resized as by torchvision's, bilinear with antialias, within 1e-5 of floats 0 to 1, and one level of uint8.

    Args:
        size: of the result, height and width; one number is both.
        scale: smallest and largest area, as fractions of the image's.
        ratio: smallest and largest width divided by height; its logarithm is drawn evenly.
    Shapes: (batch, ..., height, width) -> (batch, ..., *size).
    Raises:
        ArgumentError: numbers that cannot be.
        DataError: images without a pixel.
    Cost: each direction is a sum of 2 * ceil(s) + 1 gathers, s being how often the result goes into the image: the rectangles differ, and a
        product of matrices would round differently in another batch.
    Source: torchvision.transforms.v2.RandomResizedCrop.
    """

    num_draws = 2 + 2 * _NUM_TRIES

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = check_size("size", size)
        self.scale = check_fraction_range("scale", scale, "two fractions of an area", above=0)
        self.ratio = check_range(
            "ratio", ratio, "two aspects", "They must be two numbers above 0, the smaller first.", above=0
        )
        self._roots = Table(roots_of_aspects, *self.ratio)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the resized rectangles."""
        check_images(batch, self)
        height, width = batch.shape[-2:]
        top, left, tall, wide = self.boxes(draws, height, width)
        values = batch if batch.dtype in (torch.float32, torch.float64) else batch.to(torch.float32)
        lines = as_planes(values).permute(0, 3, 1, 2)  # (batch, width, channels, height)
        lines = _resample(lines, left, wide, self.size[1])
        lines = _resample(lines.permute(0, 3, 2, 1), top, tall, self.size[0])  # (batch, height, channels, width)
        return in_dtype_of(lines.transpose(1, 2), batch).reshape(*batch.shape[:-2], *self.size)

    def boxes(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width of each image's rectangle, float64, shape (batch,).

        Args:
            draws: the random numbers.
            height, width: of the images.
        """
        numbers = draws.numbers
        share = numbers[:, 2 : 2 + _NUM_TRIES].double() * (self.scale[1] - self.scale[0]) + self.scale[0]
        root = self._roots.at(numbers[:, 2 + _NUM_TRIES :])
        side = (share * (height * width)).sqrt()
        tall, wide = (side / root).round(), (side * root).round()
        fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
        # The first that fits: of equal values argmax takes any, so the tries are numbered.
        order = torch.arange(_NUM_TRIES, 0, -1, device=numbers.device)
        first = (fits * order).argmax(1, keepdim=True)
        is_found = fits.any(1)
        middle_tall, middle_wide = _in_the_middle(height, width, *self.ratio)
        tall = torch.where(is_found, tall.gather(1, first)[:, 0], float(middle_tall))
        wide = torch.where(is_found, wide.gather(1, first)[:, 0], float(middle_wide))
        top = torch.where(is_found, (numbers[:, 0].double() * (height - tall + 1)).floor(), (height - middle_tall) // 2)
        left = torch.where(is_found, (numbers[:, 1].double() * (width - wide + 1)).floor(), (width - middle_wide) // 2)
        return top, left, tall, wide


def _in_the_middle(height: int, width: int, low: float, high: float) -> tuple[int, int]:
    """Return height and width of the largest rectangle of an aspect that is allowed."""
    aspect = width / height
    if aspect < low:
        return max(1, round(width / low)), width
    if aspect > high:
        return height, max(1, round(height * high))
    return height, width


def _resample(lines: Tensor, first: Tensor, length: Tensor, size: int) -> Tensor:
    """Return images (batch, size, ...) whose lines, along dimension 1, are a part of the old ones, `length` long from `first` on.

    Each line is a weighted mean of those under a triangle of the width of a new pixel, and of an old one at least. Whole lines are copied,
    which takes a fifth of the time of gathering pixels.
    """
    count, images = lines.shape[1], torch.arange(len(lines), device=lines.device).unsqueeze(1)
    rows = lines.flatten(2).flatten(0, 1)
    step = (length / size).unsqueeze(1)
    reach = step.clamp(min=1)
    centre = (torch.arange(size, dtype=torch.float64, device=lines.device) + 0.5) * step
    begin = (centre - reach + 0.5).floor().clamp_(min=0)
    taps = 2 * math.ceil(max(1.0, count / size)) + 1
    result, total, weights = None, torch.zeros_like(begin), []
    for tap in range(taps):
        weight = (1 - (begin + (tap + 0.5) - centre).abs() / reach).clamp_(min=0)
        weight = weight.masked_fill_(begin + tap >= length.unsqueeze(1), 0)
        weights.append(weight)
        total = total + weight
    for tap, weight in enumerate(weights):
        place = (begin + first.unsqueeze(1) + tap).clamp_(max=count - 1).to(torch.int64)
        part = rows.index_select(0, (images * count + place).flatten()).mul_(
            (weight / total).to(rows.dtype).view(-1, 1)
        )
        result = part if result is None else result.add_(part)
    assert result is not None
    return result.view(len(lines), size, *lines.shape[2:])
