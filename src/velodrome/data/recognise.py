"""Datasets that are known to be tensors in disguise, turned into columns only after a check item by item.

`TensorDataset`, subsets of what is recognised, and torchvision's MNIST family and CIFAR with `ToTensor` (+ `Normalize`): the dataset
makes every sample go tensor -> PIL image -> tensor, 30 to 60 microseconds each, to arrive at numbers that one division of
the whole array gives bit for bit. Random crops and flips, which copy numbers, are made by batch: every outcome is one of the dataset's own,
as likely, and other ones each epoch. Anything else that is random or unknown stays on the per-sample path, and a line says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from velodrome.data.columns import Columns
from velodrome.data.randomness import GeneratorsKept
from velodrome.data.transforms.base import Compose, Draws, Transform
from velodrome.data.transforms.geometry import RandomCrop, RandomHorizontalFlip, RandomVerticalFlip
from velodrome.data.transforms.values import Normalize, ToFloat
from velodrome.errors import ArgumentError, DataError
from velodrome.free_memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["recognise", "watch"]

_IMAGE_SETS = {
    "torchvision.datasets.mnist": {"MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"},
    "torchvision.datasets.cifar": {"CIFAR10", "CIFAR100"},
}
_NUM_CHECKED = 64
_NUM_CHECKED_AT_RANDOM = 16
_MOST_OUTCOMES = 4096


def recognise(dataset: Dataset[Any]) -> tuple[Columns | None, str]:
    """Return the dataset as columns and a phrase that says how, or None and why not.

    The columns of an image set are trusted only after 64 items, the first and the last among them, were compared with what
    the dataset itself returns: values, shapes and dtypes.
    """
    if type(dataset) is TensorDataset:
        if any(tensor.layout != torch.strided or tensor.is_nested for tensor in dataset.tensors):
            return None, "sample by sample (TensorDataset of tensors that are sparse or nested)"
        return Columns(dataset.tensors, as_list=True), "in memory (TensorDataset)"
    if type(dataset) is Subset:
        columns, how = recognise(dataset.dataset)
        if columns is None:
            return None, how
        indices = torch.as_tensor(list(dataset.indices), dtype=torch.int64, device="cpu")
        total = columns.num_samples
        if bool(((indices < -total) | (indices >= total)).any()):  # SYNC: on the CPU
            return None, f"sample by sample (Subset with an index outside of {total} samples)"
        return columns.select(indices.remainder(total)), f"{how}, subset"
    if _is_image_set(dataset):
        return _image_columns(dataset)
    return None, f"sample by sample ({type(dataset).__name__} is not a known in-memory dataset)"


def watch(dataset: Any) -> list[tuple[Any, int]]:
    """Return the objects that columns of this dataset are made from, each with its version.

    The columns of an image set or a subset are copies: when what this returns differs from what it returned before, they
    are out of date. Not seen: a list of indices changed in place to another of the same length.
    """
    if type(dataset) is TensorDataset:
        return [_with_version(tensor) for tensor in dataset.tensors]
    if type(dataset) is Subset:
        return [(dataset.indices, len(dataset.indices)), *watch(dataset.dataset)]
    if _is_image_set(dataset):
        parts: Any = dataset
        transform, steps = parts.transform, _steps(parts.transform)
        return [_with_version(part) for part in (parts.data, parts.targets, parts.target_transform, transform, *steps)]
    return []


def _with_version(part: Any) -> tuple[Any, int]:
    return part, part._version if isinstance(part, Tensor) and not part.is_inference() else 0


def _is_image_set(dataset: Any) -> bool:
    kind = type(dataset)
    return kind.__name__ in _IMAGE_SETS.get(kind.__module__, ())


def _image_columns(dataset: Any) -> tuple[Columns | None, str]:
    name = type(dataset).__name__
    steps, num_random = _batched_steps(dataset.transform)
    if not steps or dataset.target_transform is not None:
        which = dataset.target_transform if steps else dataset.transform
        return None, (
            f"sample by sample ({name} with {_one_line(which)}, which is random or unknown; velodrome.transforms changes whole batches, "
            f"much faster)"
        )
    images, targets = _images_and_targets(dataset)
    if (
        not isinstance(images, Tensor)
        or not isinstance(targets, Tensor)
        or len(images) != len(targets)
        or not len(images)
        or images.dtype != torch.uint8  # the division below would be made in the user's own floats
        or targets.ndim != 1
    ):
        return None, f"sample by sample ({name} does not hold plain tensors)"
    transform = Compose(steps)
    fits_as_floats = images.numel() * 4 <= available_bytes(torch.device("cpu")) // 2
    try:
        if num_random or not fits_as_floats:
            columns = Columns((images, targets), as_list=True, transform=transform)
        else:
            columns = Columns((_in_place(images, steps), targets), as_list=True)
        num_checked, differing = _first_difference(dataset, columns, num_random)
    except (RuntimeError, ValueError, DataError):  # a step that does not fit: its own error comes with the first sample
        return None, f"sample by sample ({name} with {_one_line(dataset.transform)}, which does not fit its images)"
    if differing is not None:
        return None, f"sample by sample ({name} was recognised, but item {differing} is not what its tensors say)"
    how = f"in memory ({name}, {num_checked} items checked against the dataset"
    if num_random:
        how += f", {' and '.join(type(step).__name__ for step in steps if step.num_draws)} by batch"
    return columns, f"{how}{'' if fits_as_floats or num_random else ', as bytes'})"


def _images_and_targets(dataset: Any) -> tuple[Any, Any]:
    """Return the images as (N, channels, H, W) and the targets; what is no array of images comes as it is."""
    images, targets = dataset.data, dataset.targets
    if isinstance(images, Tensor) and images.ndim == 3:
        return images.unsqueeze(1), targets
    if isinstance(images, numpy.ndarray) and images.ndim == 4 and isinstance(targets, list):  # CIFAR
        if not all(type(target) is int for target in targets):
            return images, targets
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)
    return images, targets


def _in_place(images: Tensor, steps: Sequence[Transform]) -> Tensor:
    """Return all images changed by fixed steps, with as little memory as that takes."""
    values = images.to(torch.get_default_dtype()).div_(255)
    for step in steps[1:]:
        assert isinstance(step, Normalize)
        shape = (-1, 1, 1)
        values.sub_(torch.tensor(step.mean, dtype=values.dtype).view(shape))
        values.div_(torch.tensor(step.std, dtype=values.dtype).view(shape))
    return values


def _batched_steps(transform: Any) -> tuple[list[Transform], int]:
    """Return the same steps for whole batches of uint8 images, and how many are random; no steps where one is not known.

    Random ones are those that copy numbers, so that each outcome of torchvision's is one of ours, as likely, bit for bit.
    """
    found: list[Transform] = []
    is_float = False
    for step in _steps(transform):
        kind = _kind(step)
        if kind == "transforms.ToTensor" and not is_float:
            found.append(ToFloat())
            is_float = True
        elif kind == "transforms.Normalize" and is_float:
            try:
                found.append(Normalize(_numbers(step.mean), _numbers(step.std)))
            except (ArgumentError, TypeError, ValueError):
                return [], 0
        elif kind == "transforms.RandomHorizontalFlip":
            found.append(RandomHorizontalFlip(step.p))
        elif kind == "transforms.RandomVerticalFlip":
            found.append(RandomVerticalFlip(step.p))
        elif kind == "transforms.RandomCrop" and _is_plain_crop(step):
            found.append(RandomCrop(tuple(step.size), padding=step.padding or 0))
        else:
            return [], 0
    num_random = sum(step.num_draws > 0 for step in found)
    return (found, num_random) if is_float else ([], 0)


def _is_plain_crop(step: Any) -> bool:
    has_plain_padding = step.padding is None or type(step.padding) is int
    return has_plain_padding and step.fill == 0 and step.padding_mode == "constant" and not step.pad_if_needed


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, (list, tuple)) else [values]))


def _steps(transform: Any) -> Sequence[Any]:
    return transform.transforms if _kind(transform) == "transforms.Compose" else [transform]


def _kind(transform: Any) -> str:
    """Return "transforms.ToTensor" for exactly torchvision's class, whichever of its modules defines it."""
    kind = type(transform)
    known = kind.__module__ == "torchvision.transforms.transforms"
    return f"transforms.{kind.__name__}" if known else ""


def _first_difference(dataset: Any, columns: Columns, num_random: int) -> tuple[int, int | None]:
    """Compare items with the columns; return how many were checked and the first index that differs.

    An item that is changed at random must be one of the outcomes that the batched steps can have: all of them are tried.
    """
    images, targets = columns.tensors
    assert isinstance(images, Tensor)
    assert isinstance(targets, Tensor)
    total = len(images)
    generator = torch.Generator().manual_seed(total)
    num_checked = _NUM_CHECKED_AT_RANDOM if num_random else _NUM_CHECKED
    drawn = torch.randint(total, (num_checked - 2,), generator=generator).tolist()  # SYNC: on the CPU
    picked = {0, total - 1, *drawn}
    transform = columns.transform
    numbers = None if transform is None else _all_outcomes(transform, images)
    if numbers is not None and len(numbers) > _MOST_OUTCOMES:
        return 0, 0
    for index in sorted(picked):
        with GeneratorsKept():  # what the dataset draws here was never drawn
            image, target = dataset[index]
        outcomes = images[index : index + 1]
        if transform is not None and numbers is not None:
            copies = outcomes.expand(len(numbers), *outcomes.shape[1:]).contiguous()
            outcomes = transform(copies, Draws(torch.zeros(len(numbers), dtype=torch.int64), numbers))
        same_image = isinstance(image, Tensor) and image.dtype == outcomes.dtype and image.shape == outcomes.shape[1:]
        same_image = same_image and bool((outcomes == image).flatten(1).all(1).any())  # SYNC: on the CPU
        if not same_image or type(target) is not int or targets.dtype != torch.int64 or target != int(targets[index]):
            return len(picked), index
    return len(picked), None


def _all_outcomes(transform: Transform, images: Tensor) -> Tensor:
    """Return random numbers that lead to every outcome of crops and flips, one row each."""
    assert isinstance(transform, Compose)
    height, width = images.shape[-2:]
    choices: list[list[float]] = []
    for step in transform.transforms:
        if isinstance(step, RandomCrop):
            for side, size in zip((height, width), step.size, strict=True):
                places = max(1, side + 2 * step.padding - size + 1)
                choices.append([(place + 0.5) / places for place in range(places)])
            height, width = step.size
        elif step.num_draws:
            choices.append([0.0, 1 - 2.0**-24])  # mirrored and not, unless p is 0 or 1
    return torch.cartesian_prod(*map(torch.tensor, choices)).view(-1, len(choices)) if choices else torch.zeros(1, 0)


def _one_line(transform: Any) -> str:
    return " ".join(repr(transform).split())[:120]
