"""What a batched transform is: a change of a whole batch of inputs whose random numbers belong to the samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from velodrome.data.transforms.counters import normals
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Compose", "Draws", "Transform", "check_images", "check_probability", "per_sample"]


class Draws:
    """The random numbers of a batch: each sample's are its own, whatever other samples are in the batch.

    Args:
        keys: of the samples, int64, shape (batch,).
        numbers: in [0, 1), float32, shape (batch, the transform's `num_draws`).
        stream: tells transforms of the same batch apart that draw normal numbers.
    """

    __slots__ = ("keys", "numbers", "stream")

    def __init__(self, keys: Tensor, numbers: Tensor, stream: int = 0) -> None:
        self.keys = keys
        self.numbers = numbers
        self.stream = stream

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers, float32, shape (batch, *shape); the same ones when it is called again.

        Cost: two passes over four bytes a number more than `torch.randn` needs; no device wait.
        """
        count = 1
        for size in shape:
            count *= size
        return normals(self.keys, count, first=self.stream << 28).view(-1, *shape)


class Transform(ABC):
    """A change of a batch of inputs, all samples at once, on whatever device they lie.

    To write your own, say in `num_draws` how many random numbers each sample needs, and use the rows of `draws.numbers` (batch, num_draws)
    or `draws.normal(shape)`; nothing else may be drawn. What is returned must be a new tensor, or the batch itself changed in place,
    and a sample's part must depend on that sample and its row only. Then it is f(seed, epoch, index).
    """

    num_draws: int = 0
    """random numbers a sample"""

    @abstractmethod
    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the changed batch.

        Args:
            batch: inputs, shape (batch, ...); a copy of the data, which may be changed in place.
            draws: the random numbers.
        """

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
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise ArgumentError(
                    f"{transform!r} is not a batched transform. Compose takes those of velodrome.transforms, and subclasses of its Transform; "
                    f"a function of a batch is given to the loader by itself, as transform=."
                )
        self.transforms = tuple(transforms)
        self.num_draws = sum(transform.num_draws for transform in self.transforms)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Return the batch after all of them."""
        begin = 0
        for number, transform in enumerate(self.transforms):
            end = begin + transform.num_draws
            own = Draws(draws.keys, draws.numbers[:, begin:end], stream=draws.stream * 64 + number + 1)
            batch, begin = transform(batch, own), end
        return batch

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


def check_probability(name: str, value: float) -> float:
    """Refuse what is no probability.

    Raises:
        ArgumentError: the value is no number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value!r} is not a probability. It must be a number from 0 to 1.")
    return value


def check_images(batch: Tensor, transform: Transform) -> None:
    """Refuse a batch without height and width.

    Raises:
        DataError: it has fewer than three dimensions.
    """
    if batch.ndim < 3:
        raise DataError(
            f"{type(transform).__name__} changes images, (batch, channels, height, width) or (batch, height, width), and was given a batch "
            f"of shape {tuple(batch.shape)}. Leave it out, or give the data in the shape of images."
        )


def per_sample(numbers: Tensor, batch: Tensor) -> Tensor:
    """Return one number a sample in a shape that goes with the batch: (batch, 1, 1, ...)."""
    return numbers.view(-1, *(1,) * (batch.ndim - 1))
