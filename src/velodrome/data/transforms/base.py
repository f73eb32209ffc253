"""What a batched transform is: a change of a whole batch of inputs whose random numbers belong to the samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.counters import normals
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["Compose", "Draws", "Transform", "as_planes", "check_fill", "check_images", "in_dtype_of", "per_sample"]

_COLOURS = (1, 3, 4)
"""how many channels pictures have: grey, red-green-blue, and with transparency"""


class Draws:
    """The random numbers of a batch: each sample's are its own, whatever other samples are in the batch.

    Args:
        keys: of the samples, int64, shape (batch,).
        numbers: in [0, 1), float32, shape (batch, the transform's `num_draws`).
        stream: tells transforms of the same batch apart that draw normal numbers.
        batch_size: samples a batch, where several batches are changed at once; None where they are one.
    """

    __slots__ = ("batch_size", "keys", "numbers", "stream")

    def __init__(self, keys: Tensor, numbers: Tensor, stream: int = 0, batch_size: int | None = None) -> None:
        self.keys = keys
        self.numbers = numbers
        self.stream = stream
        self.batch_size = batch_size

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers, float32, shape (batch, *shape); the same ones when it is called again.

        Cost: two passes over four bytes a number more than `torch.randn` needs; no device wait.
        """
        count = math.prod(shape)
        return normals(self.keys, count, first=self.stream << 28).view(len(self.keys), *shape)


class Transform(ABC):
    """A change of a batch of inputs, all samples at once, on whatever device they lie.

    To write your own, say in `num_draws` how many random numbers each sample needs, and use the rows of `draws.numbers` (batch, num_draws)
    or `draws.normal(shape)`; nothing else may be drawn. What is returned must be a new tensor, or the batch itself changed in place,
    and a sample's part must depend on that sample and its row only. Then it is f(seed, epoch, index).
    """

    num_draws: int = 0
    """random numbers a sample"""
    changes_targets: bool = False
    """whether targets are changed too, by `pair`"""

    @abstractmethod
    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the changed batch.

        Args:
            batch: inputs, shape (batch, ...); a copy of the data, which may be changed in place.
            draws: the random numbers.
        """

    def pair(self, inputs: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return changed inputs and their targets. One that changes targets, and says so in `changes_targets`, has a `pair` of its own.

        Args:
            inputs: see `__call__`.
            targets: a copy as well, shape (batch, ...).
            draws: the random numbers.
        """
        return self(inputs, draws), targets

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"


class Compose(Transform):
    """Several transforms, one after the other.

    Args:
        transforms: in the order in which they are applied.
    Raises:
        ArgumentError: one of them is no batched transform.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        if isinstance(transforms, Transform) or not isinstance(transforms, Iterable):
            raise ArgumentError(f"transforms={transforms!r} is not a list of transforms. Give a list: Compose([...]).")
        transforms = tuple(transforms)
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise ArgumentError(
                    f"{transform!r} is not a batched transform. Compose takes those of velodrome.transforms, and subclasses of its Transform; "
                    f"a function of a batch is given to the loader by itself, as transform=."
                )
        self.transforms = transforms
        self.num_draws = sum(transform.num_draws for transform in self.transforms)
        self.changes_targets = any(transform.changes_targets for transform in self.transforms)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the batch after all of them."""
        for transform, own in self._each(draws):
            batch = transform(batch, own)
        return batch

    def pair(self, inputs: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return inputs and targets after all of them."""
        for transform, own in self._each(draws):
            inputs, targets = transform.pair(inputs, targets, own)
        return inputs, targets

    def _each(self, draws: Draws) -> Iterator[tuple[Transform, Draws]]:
        """Yield each transform with random numbers of its own."""
        begin = 0
        for number, transform in enumerate(self.transforms):
            end = begin + transform.num_draws
            stream = draws.stream * 64 + number + 1
            yield transform, Draws(draws.keys, draws.numbers[:, begin:end], stream, draws.batch_size)
            begin = end

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


def check_images(batch: Tensor, transform: Transform) -> None:
    """Refuse a batch without height and width.

    Raises:
        DataError: it has fewer than three dimensions, channels behind height and width, or images without a pixel.
    """
    if batch.ndim < 3:
        raise DataError(
            f"{type(transform).__name__} changes images, (batch, channels, height, width) or (batch, height, width), and was given a batch "
            f"of shape {tuple(batch.shape)}. Leave it out, or give the data in the shape of images."
        )
    if 0 in batch.shape[1:]:
        raise DataError(
            f"{type(transform).__name__} was given images of shape {tuple(batch.shape[1:])}, which have no pixel: look at what made them."
        )
    if batch.ndim == 4 and batch.shape[3] in _COLOURS and min(batch.shape[1:3]) > max(_COLOURS):
        raise DataError(
            f"{type(transform).__name__} was given images of shape {tuple(batch.shape[1:])}, and would take them for {batch.shape[1]} channels of "
            f"{batch.shape[2]} rows of {batch.shape[3]} pixels. They look like (height, width, channels): put the channels first, "
            f"images.permute(0, 3, 1, 2) of the whole data or permute(2, 0, 1) of one image."
        )


def as_planes(batch: Tensor) -> Tensor:
    """Return the images with all that is between the sample and the height as channels: (batch, channels, height, width)."""
    return batch.reshape(len(batch), math.prod(batch.shape[1:-2]), *batch.shape[-2:])


def check_fill(batch: Tensor, fill: float, transform: Transform) -> None:
    """Refuse to fill a batch of whole numbers with what it cannot hold.

    Raises:
        DataError: a fraction, or a number out of the dtype's range.
    """
    if batch.is_floating_point() or batch.dtype == torch.bool:
        return
    limits = torch.iinfo(batch.dtype)
    if fill != int(fill) or not limits.min <= fill <= limits.max:
        raise DataError(
            f"{type(transform).__name__} fills with {fill:g}, which {batch.dtype} cannot hold: whole numbers from {limits.min} to {limits.max}. Give "
            f"such a number, or turn the images into floats before (transforms.ToFloat(), or Normalize)."
        )


def in_dtype_of(values: Tensor, batch: Tensor) -> Tensor:
    """Return values in the dtype of the batch that they were made of; rounded where that one has whole numbers."""
    is_rounded = values.is_floating_point() and not batch.is_floating_point()
    return (values.round() if is_rounded else values).to(batch.dtype)


def per_sample(numbers: Tensor, batch: Tensor) -> Tensor:
    """Return one number a sample in a shape that goes with the batch: (batch, 1, 1, ...)."""
    return numbers.view(-1, *(1,) * (batch.ndim - 1))
