"""Transforms that blank a rectangle out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.base import Transform, check_images, check_probability
from velodrome.errors import ArgumentError

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
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArgumentError(f"size={size!r} is not a side in pixels. It must be a whole number of at least 1.")
        self.size = size
        self.fill = fill
        self.p = check_probability("p", p)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images with their squares."""
        check_images(batch, self)
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
        if not 0 <= scale[0] <= scale[1] <= 1:
            raise ArgumentError(
                f"scale={scale} are not two fractions of an area. They must be from 0 to 1, the smaller first."
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ArgumentError(f"ratio={ratio} are not two aspects. They must be above 0, the smaller first.")
        self.p = check_probability("p", p)
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.value = value
        self._tables: dict[torch.device, Tensor] = {}

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images with their rectangles."""
        check_images(batch, self)
        height, width = batch.shape[-2:]
        numbers = draws.numbers
        share = numbers[:, 3 : 3 + _NUM_TRIES].double() * (self.scale[1] - self.scale[0]) + self.scale[0]
        root = self._roots_of_aspects(batch.device)[(numbers[:, 3 + _NUM_TRIES :] * 65536).to(torch.int64)]
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

    def _roots_of_aspects(self, device: torch.device) -> Tensor:
        """Return the square root of the aspect for 65,536 equal parts of its logarithm: looked up, for bits that no batch changes."""
        if device not in self._tables:
            low, high = (math.log(value) for value in self.ratio)
            parts = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
            self._tables[device] = (parts * (high - low) + low).div_(2).exp_().to(device)
        return self._tables[device]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_tables": {}}


def _blank(batch: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, fill: float) -> Tensor:
    """Return the batch with a rectangle of each image filled; the four numbers of each have shape (batch,)."""
    rows = torch.arange(batch.shape[-2], device=batch.device)
    columns = torch.arange(batch.shape[-1], device=batch.device)
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    mask = inside_rows[:, :, None] & inside_columns[:, None, :]
    return batch.masked_fill(mask.view(len(batch), *(1,) * (batch.ndim - 3), *mask.shape[1:]), fill)
