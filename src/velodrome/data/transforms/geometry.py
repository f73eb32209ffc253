"""Transforms that move pixels: crops, shifts and flips. Numbers are copied, never computed, so any dtype will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

from velodrome.data.transforms.arguments import (
    FILL,
    check_choice,
    check_number,
    check_probability,
    check_size,
    check_whole,
)
from velodrome.data.transforms.base import Transform, check_fill, check_images, per_sample
from velodrome.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["RandomCrop", "RandomHorizontalFlip", "RandomTranslate", "RandomVerticalFlip"]

PaddingMode = Literal["constant", "reflect", "replicate"]


class RandomCrop(Transform):
    """Cut a rectangle out of each image, at a place of its own; every place is equally likely, as in torchvision's.

    Args:
        size: of the rectangle, height and width; one number is both.
        padding: pixels that are added at each side before.
        fill: what they are filled with where `padding_mode` is "constant".
        padding_mode: "constant", "reflect" (without the border) or "replicate".
    Shapes: (batch, ..., height, width) -> (batch, ..., *size), any dtype.
    Raises:
        ArgumentError: sizes or mode that cannot be.
        DataError: images that are smaller than the rectangle.
    Cost: one copy for the padding, one of whole rows: 42 microseconds for 64 images of 28 x 28 bytes, where a gather of single pixels takes
        73 to 85 (one thread of a busy two-core machine).
    """

    num_draws = 2

    def __init__(
        self, size: int | tuple[int, int], *, padding: int = 0, fill: float = 0, padding_mode: PaddingMode = "constant"
    ) -> None:
        self.size = check_size("size", size)
        self.padding = check_whole("padding", padding, "a number of pixels", least=0)
        self.fill = check_number("fill", fill, *FILL)
        self.padding_mode: PaddingMode = check_choice("padding_mode", padding_mode, PaddingMode)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the rectangles."""
        check_images(batch, self)
        if self.padding and self.padding_mode == "constant":
            check_fill(batch, self.fill, self)
        return _crop(batch, draws.numbers, self.size, self.padding, self.fill, self.padding_mode)


class RandomTranslate(Transform):
    """Move each image by up to so many pixels in either direction; a random crop of the same size from the padded image.

    Args:
        pixels: the farthest it is moved; every whole number from -pixels to pixels is equally likely, each way.
        fill, padding_mode: what comes in at the border, see `RandomCrop`.
    Shapes: any (batch, ..., height, width), any dtype.
    """

    num_draws = 2

    def __init__(self, pixels: int, *, fill: float = 0, padding_mode: PaddingMode = "constant") -> None:
        self.pixels = check_whole("pixels", pixels, "a distance", least=1)
        self.fill = check_number("fill", fill, *FILL)
        self.padding_mode: PaddingMode = check_choice("padding_mode", padding_mode, PaddingMode)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the moved images."""
        check_images(batch, self)
        if self.padding_mode == "constant":
            check_fill(batch, self.fill, self)
        height, width = batch.shape[-2:]
        return _crop(batch, draws.numbers, (height, width), self.pixels, self.fill, self.padding_mode)


class _RandomFlip(Transform):
    """Mirrors an image along one dimension, with some probability."""

    num_draws = 1
    dim: int

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability("p", p)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the images, some of them mirrored."""
        check_images(batch, self)
        return torch.where(per_sample(draws.numbers[:, 0] < self.p, batch), batch.flip(self.dim), batch)


class RandomHorizontalFlip(_RandomFlip):
    """Mirror an image, left to right, with some probability.

    Args:
        p: the probability.
    """

    dim = -1


class RandomVerticalFlip(_RandomFlip):
    """Turn an image upside down, as in a mirror below it, with some probability.

    Args:
        p: the probability.
    """

    dim = -2


def _crop(
    batch: Tensor, numbers: Tensor, size: tuple[int, int], padding: int, fill: float, mode: PaddingMode
) -> Tensor:
    """Return rectangles of the padded images; the two numbers of a sample say where."""
    if padding:
        batch = _pad(batch, padding, fill, mode)
    batch = batch.contiguous()
    (height, width), (full_height, full_width) = size, batch.shape[-2:]
    if full_height < height or full_width < width:
        raise DataError(
            f"The images are {full_height} x {full_width} with their padding, too small to cut {height} x {width} out of. Use a smaller size "
            f"or more padding."
        )
    if not len(batch):
        return batch.new_empty((*batch.shape[:-2], height, width))
    # Below 1 - 2**-24 times a whole number that fits into float32 rounds to below that number: no place outside is hit.
    top = (numbers[:, 0] * (full_height - height + 1)).to(torch.int64)
    left = (numbers[:, 1] * (full_width - width + 1)).to(torch.int64)
    # Memory seen as overlapping rows of the rectangle's width, one beginning at each pixel: a rectangle is `height` of them.
    rows = batch.as_strided((batch.numel() - width + 1, width), (1, 1))
    planes = batch.numel() // (full_height * full_width * batch.shape[0])
    place = top.mul_(full_width).add_(left).view(-1, 1, 1)
    each_plane = torch.arange(batch.shape[0] * planes, device=batch.device).mul_(full_height * full_width)
    each_row = torch.arange(height, device=batch.device).mul_(full_width)
    begin = each_plane.view(-1, planes, 1) + place + each_row
    return rows.index_select(0, begin.flatten()).view(*batch.shape[:-2], height, width)


def _pad(batch: Tensor, padding: int, fill: float, mode: PaddingMode) -> Tensor:
    amounts = (padding,) * 4
    if mode == "constant":
        return F.pad(batch, amounts, value=fill)
    if mode == "reflect" and padding >= min(batch.shape[-2:]):
        raise DataError(
            f"padding_mode='reflect' needs images larger than the padding of {padding}; they are {tuple(batch.shape[-2:])}."
        )
    # F.pad has these two modes for floats only: rows and columns are picked by their number instead, which any dtype has.
    for dim in (-2, -1):
        last = batch.shape[dim] - 1
        places = torch.arange(-padding, last + 1 + padding, device=batch.device)
        places = last - (last - places.abs()).abs() if mode == "reflect" else places.clamp(0, last)
        batch = batch.index_select(batch.ndim + dim, places)
    return batch
