"""Transforms that blank a rectangle out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.arguments import (
    FILL,
    check_fraction_range,
    check_number,
    check_probability,
    check_range,
    check_whole,
)
from velodrome.data.transforms.base import Transform, check_fill, check_images
from velodrome.data.transforms.tables import Table, roots_of_aspects

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["Cutout", "RandomErasing"]

_NUM_TRIES = 10


class Cutout(Transform):
    """Blank a square out of each image, around a centre that is anywhere in it; what lies outside of the image is cut off.

    Args:
        size: of the square's side, in pixels.
        fill: what it is filled with.
        p: the probability that an image gets one.
    Source: T. DeVries, G. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
    """

    num_draws = 3

    def __init__(self, size: int, *, fill: float = 0, p: float = 1.0) -> None:
        self.size = check_whole("size", size, "a side in pixels", least=1)
        self.fill = check_number("fill", fill, *FILL)
        self.p = check_probability("p", p)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images with their squares."""
        check_images(batch, self)
        check_fill(batch, self.fill, self)
        height, width = batch.shape[-2:]
        numbers = draws.numbers
        top = (numbers[:, 0] * height).floor() - self.size // 2
        left = (numbers[:, 1] * width).floor() - self.size // 2
        side = torch.where(numbers[:, 2] < self.p, self.size, 0)
        return _blank(batch, top, left, side, side, self.fill)


class RandomErasing(Transform):
    """Blank a rectangle of random size, shape and place out of some images; drawn as torchvision's `RandomErasing` draws.

    Area and aspect are drawn until the rectangle fits, ten times at most; an image for which none fits stays as it is.

    Args:
        p: the probability that an image gets one.
        scale: smallest and largest area, as fractions of the image's.
        ratio: smallest and largest height divided by width; its logarithm is drawn evenly.
        value: what it is filled with.
    Source: Z. Zhong et al., Random Erasing Data Augmentation, AAAI 2020; torchvision.transforms.RandomErasing.
    """

    num_draws = 3 + 2 * _NUM_TRIES

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0,
    ) -> None:
        self.p = check_probability("p", p)
        self.scale = check_fraction_range("scale", scale, "two fractions of an area")
        self.ratio = check_range(
            "ratio", ratio, "two aspects", "They must be two numbers above 0, the smaller first.", above=0
        )
        self.value = check_number("value", value, *FILL)
        self._roots = Table(roots_of_aspects, *self.ratio)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images with their rectangles."""
        check_images(batch, self)
        check_fill(batch, self.value, self)
        height, width = batch.shape[-2:]
        numbers = draws.numbers
        share = numbers[:, 3 : 3 + _NUM_TRIES].double() * (self.scale[1] - self.scale[0]) + self.scale[0]
        root = self._roots.at(numbers[:, 3 + _NUM_TRIES :])
        side = (share * (height * width)).sqrt()
        heights, widths = (side * root).round(), (side / root).round()
        fits = (heights < height) & (widths < width)
        # The first that fits: of equal values argmax takes any, so the tries are numbered.
        order = torch.arange(_NUM_TRIES, 0, -1, device=batch.device)
        first = (fits * order).argmax(1, keepdim=True)
        is_erased = (numbers[:, 0] < self.p) & fits.any(1)
        tall, wide = (torch.where(is_erased, sizes.gather(1, first)[:, 0], 0.0) for sizes in (heights, widths))
        top = (numbers[:, 1] * (height - tall + 1)).floor()
        left = (numbers[:, 2] * (width - wide + 1)).floor()
        return _blank(batch, top, left, tall, wide, self.value)


def _blank(batch: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, fill: float) -> Tensor:
    """Return the batch with a rectangle of each image filled; the four numbers of each have shape (batch,)."""
    rows = torch.arange(batch.shape[-2], device=batch.device)
    columns = torch.arange(batch.shape[-1], device=batch.device)
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    mask = inside_rows[:, :, None] & inside_columns[:, None, :]
    return batch.masked_fill(mask.view(len(batch), *(1,) * (batch.ndim - 3), *mask.shape[1:]), fill)
