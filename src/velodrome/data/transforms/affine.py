"""Transforms that turn, move, scale and shear images: each pixel of the result is looked for in the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F

from velodrome.data.transforms.arguments import (
    FILL,
    check_choice,
    check_fraction_range,
    check_number,
    check_range,
    shown,
)
from velodrome.data.transforms.base import Transform, as_planes, check_fill, check_images, in_dtype_of, per_sample
from velodrome.data.transforms.tables import Table, cos_sin_tan_of_degrees
from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["RandomAffine", "RandomRotation"]

Interpolation = Literal["nearest", "bilinear"]


class RandomAffine(Transform):
    """Turn, move, scale and shear each image around its centre, by numbers of its own; uint8 stays uint8.

    For the same numbers the results are those of `torchvision.transforms.v2.functional.affine`, bilinear within 1e-5 of floats 0 to 1; the nearest
    pixel is another one where two are equally near up to rounding. Where `fill` is not 0, a pixel at the border is the mean of image and
    fill, weighted once; torchvision weighs the image's part twice.

    Args:
        degrees: the angle is drawn from these two, clockwise; one number d means (-d, d).
        translate: the farthest that it is moved, as fractions of width and height; whole pixels.
        scale: smallest and largest factor.
        shear: degrees along the x axis: two numbers, or one as with `degrees`; four give the y axis as well.
        interpolation: "nearest" or "bilinear".
        fill: what comes in from outside.
    Shapes: (batch, channels, height, width) or (batch, height, width).
    Raises:
        ArgumentError: numbers that cannot be.
    Cost: a pass of `torch.nn.functional.grid_sample` in float32, another one over a mask where `fill` is not 0, and a grid of eight bytes a pixel.
    """

    num_draws = 6

    def __init__(
        self,
        degrees: float | tuple[float, float],
        *,
        translate: tuple[float, float] | None = None,
        scale: tuple[float, float] | None = None,
        shear: float | tuple[float, ...] | None = None,
        interpolation: Interpolation = "nearest",
        fill: float = 0,
    ) -> None:
        self.degrees = _angles("degrees", degrees)
        self.translate = None if translate is None else _shares("translate", translate)
        rule = "They must be two numbers above 0, the smaller first."
        self.scale = None if scale is None else check_range("scale", scale, "two factors", rule, above=0)
        self.shear = None if shear is None else _shears(shear)
        self.interpolation: Interpolation = check_choice("interpolation", interpolation, Interpolation)
        self.fill = check_number("fill", fill, *FILL)
        self._angle = Table(cos_sin_tan_of_degrees, *self.degrees)
        self._shears = [Table(cos_sin_tan_of_degrees, *pair) for pair in self.shear or ()]

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the changed images."""
        check_images(batch, self)
        check_fill(batch, self.fill, self)
        height, width = batch.shape[-2:]
        numbers = draws.numbers
        nothing = torch.zeros_like(numbers[:, 0], dtype=torch.float64)
        cos, sin, _ = self._angle.at(numbers[:, 0]).unbind(1)
        shears = [table.at(numbers[:, 4 + axis])[:, 2] for axis, table in enumerate(self._shears)]
        tan_x, tan_y = (*shears, nothing, nothing)[:2]
        scale = nothing + 1
        if self.scale is not None:
            scale = numbers[:, 3].double() * (self.scale[1] - self.scale[0]) + self.scale[0]
        across, down = nothing, nothing
        if self.translate is not None:
            across = ((numbers[:, 1].double() * 2 - 1) * (self.translate[0] * width)).round()
            down = ((numbers[:, 2].double() * 2 - 1) * (self.translate[1] * height)).round()
        matrix = _inverse(cos, sin, tan_x, tan_y, scale, across, down)
        return _sampled(batch, matrix, self.interpolation, self.fill)


class RandomRotation(Transform):
    """Turn each image around its centre, by an angle of its own; uint8 stays uint8.

    As `torchvision.transforms.v2.functional.rotate` without `expand`, with the bounds of `RandomAffine`.

    Args:
        degrees: the angle is drawn from these two, counter-clockwise; one number d means (-d, d).
        interpolation: "nearest" or "bilinear".
        fill: what comes in from outside.
    Shapes: (batch, channels, height, width) or (batch, height, width).
    Raises:
        ArgumentError: numbers that cannot be.
    """

    num_draws = 1

    def __init__(
        self, degrees: float | tuple[float, float], *, interpolation: Interpolation = "nearest", fill: float = 0
    ) -> None:
        self.degrees = _angles("degrees", degrees)
        self.interpolation: Interpolation = check_choice("interpolation", interpolation, Interpolation)
        self.fill = check_number("fill", fill, *FILL)
        self._angle = Table(cos_sin_tan_of_degrees, *self.degrees)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the turned images."""
        check_images(batch, self)
        check_fill(batch, self.fill, self)
        cos, sin, _ = self._angle.at(draws.numbers[:, 0]).unbind(1)
        nothing = torch.zeros_like(cos)
        matrix = _inverse(cos, -sin, nothing, nothing, nothing + 1, nothing, nothing)
        return _sampled(batch, matrix, self.interpolation, self.fill)


def _angles(name: str, value: Any, *, most: float = math.inf) -> tuple[float, float]:
    """Return two angles, the smaller first; one number stands for itself either way.

    Raises:
        ArgumentError: it is anything else.
    """
    rule = f"Give one number of at least 0, for both ways, or two, the smaller first{'' if most == math.inf else f', between -{most:g} and {most:g}'}."
    try:
        one = check_number(name, value, "", "", least=0)
    except ArgumentError:
        return check_range(name, value, "two angles in degrees", rule, least=-most, most=most)
    return check_range(name, (-one, one), "two angles in degrees", rule, least=-most, most=most)


def _shears(value: Any) -> tuple[tuple[float, float], ...]:
    """Return one pair of angles, along x, or two."""
    if isinstance(value, (tuple, list)) and len(value) == 4:
        return _angles("shear", tuple(value[:2]), most=89), _angles("shear", tuple(value[2:]), most=89)
    return (_angles("shear", value, most=89),)


def _shares(name: str, value: Any) -> tuple[float, float]:
    """Return fractions of width and height, in any order of size.

    Raises:
        ArgumentError: it is anything else.
    """
    what = "two fractions, of width and height"
    try:
        across, down = value
        return tuple(check_fraction_range(name, (part, part), what)[0] for part in (across, down))  # pyright: ignore[reportReturnType]
    except (ArgumentError, TypeError, ValueError):
        raise ArgumentError(f"{name}={shown(value)} are not {what}. They must be two numbers from 0 to 1.") from None


def _inverse(
    cos: Tensor, sin: Tensor, tan_x: Tensor, tan_y: Tensor, scale: Tensor, across: Tensor, down: Tensor
) -> list[list[Tensor]]:
    """Return for each image the matrix (2, 3) that leads from a place in the result to that in the image, both counted from the centre.

    Source: torchvision.transforms.functional._get_inverse_affine_matrix.
    """
    a = cos + sin * tan_y
    b = -(a * tan_x + sin)
    c = sin - cos * tan_y
    d = cos - c * tan_x
    rows = [[d / scale, -b / scale], [-c / scale, a / scale]]
    return [[x, y, -(x * across) - y * down] for x, y in rows]


def _sampled(batch: Tensor, matrix: list[list[Tensor]], mode: str, fill: float) -> Tensor:
    """Return the images read at the places that the matrix leads to; products and sums one by one, for bits that no batch changes."""
    height, width = batch.shape[-2:]
    values = batch if batch.dtype in (torch.float32, torch.float64) else batch.to(torch.float32)
    values = as_planes(values)
    kind = {"dtype": values.dtype, "device": values.device}
    x = torch.arange(width, **kind).sub_((width - 1) / 2).view(1, 1, -1)
    y = torch.arange(height, **kind).sub_((height - 1) / 2).view(1, -1, 1)
    places = []
    for row, size in zip(matrix, (width, height), strict=True):
        along_x, along_y, moved = (per_sample(number.to(values.dtype), x) for number in row)
        places.append((x * along_x + y * along_y + moved) / (0.5 * size))
    grid = torch.stack(places, -1)
    sampled = F.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)
    if fill:
        inside = F.grid_sample(
            torch.ones_like(values[:, :1]), grid, mode=mode, padding_mode="zeros", align_corners=False
        )
        sampled = sampled + (1 - inside) * fill
    sampled = sampled.view(batch.shape)
    return in_dtype_of(sampled, batch)
