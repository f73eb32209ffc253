"""Datasets that are known to be tensors in disguise, turned into columns only after a check item by item.

`TensorDataset`, subsets of what is recognised, and torchvision's MNIST family with `ToTensor` (+ `Normalize`): the dataset
makes every sample go tensor -> PIL image -> tensor, 30 to 60 microseconds each, to arrive at numbers that one division of
the whole array gives bit for bit. Anything random or unknown stays on the per-sample path, and a line says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from velodrome.data.columns import Columns, available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["recognise", "watch"]

_MNIST_FAMILY = {"MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"}
_NUM_CHECKED = 64


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
    if _is_mnist_family(dataset):
        return _mnist_columns(dataset)
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
    if _is_mnist_family(dataset):
        parts: Any = dataset
        transform, steps = parts.transform, _steps(parts.transform)
        return [_with_version(part) for part in (parts.data, parts.targets, parts.target_transform, transform, *steps)]
    return []


def _with_version(part: Any) -> tuple[Any, int]:
    return part, part._version if isinstance(part, Tensor) and not part.is_inference() else 0


def _is_mnist_family(dataset: Any) -> bool:
    kind = type(dataset)
    return kind.__module__ == "torchvision.datasets.mnist" and kind.__name__ in _MNIST_FAMILY


def _mnist_columns(dataset: Any) -> tuple[Columns | None, str]:
    name = type(dataset).__name__
    transform = _batched_transform(dataset.transform)
    if transform is None or dataset.target_transform is not None:
        which = dataset.target_transform if transform is not None else dataset.transform
        return None, f"sample by sample ({name} with {_one_line(which)}, which is random or unknown)"
    images, targets = dataset.data, dataset.targets
    if (
        not isinstance(images, Tensor)
        or not isinstance(targets, Tensor)
        or len(images) != len(targets)
        or not len(images)
        or images.dtype != torch.uint8  # the division below would be made in the user's own floats
        or targets.ndim != 1
    ):
        return None, f"sample by sample ({name} does not hold plain tensors)"
    if images.numel() * 4 > available_bytes(torch.device("cpu")) // 2:
        return None, f"sample by sample ({name} as float32 needs more than half of the free memory)"
    try:
        columns = (transform(images.unsqueeze(1)), targets)
    except RuntimeError:  # a Normalize that does not fit: its own error comes with the first sample
        return None, f"sample by sample ({name} with {_one_line(dataset.transform)}, which does not fit its images)"
    num_checked, differing = _first_difference(dataset, columns)
    if differing is not None:
        return None, f"sample by sample ({name} was recognised, but item {differing} is not what its tensors say)"
    return Columns(columns, as_list=True), f"in memory ({name}, {num_checked} items checked against the dataset)"


def _batched_transform(transform: Any) -> Callable[[Tensor], Tensor] | None:
    """Return the same transform for a whole uint8 array (N, 1, H, W), or None when it is not a known deterministic one."""
    steps = _steps(transform)
    if (
        not steps
        or _kind(steps[0]) != "transforms.ToTensor"
        or any(_kind(step) != "transforms.Normalize" for step in steps[1:])
    ):
        return None

    def apply(images: Tensor) -> Tensor:
        values = images.to(torch.get_default_dtype()).div_(255)
        for step in steps[1:]:
            mean = torch.as_tensor(step.mean, dtype=values.dtype).view(-1, 1, 1)
            std = torch.as_tensor(step.std, dtype=values.dtype).view(-1, 1, 1)
            values.sub_(mean).div_(std)
        return values

    return apply


def _steps(transform: Any) -> Sequence[Any]:
    return transform.transforms if _kind(transform) == "transforms.Compose" else [transform]


def _kind(transform: Any) -> str:
    """Return "transforms.ToTensor" for exactly torchvision's class, whichever of its modules defines it."""
    kind = type(transform)
    known = kind.__module__ == "torchvision.transforms.transforms"
    return f"transforms.{kind.__name__}" if known else ""


def _first_difference(dataset: Any, columns: tuple[Tensor, Tensor]) -> tuple[int, int | None]:
    """Compare items with the columns; return how many were checked and the first index that differs."""
    total = len(columns[0])
    generator = torch.Generator().manual_seed(total)
    drawn = torch.randint(total, (_NUM_CHECKED - 2,), generator=generator).tolist()  # SYNC: on the CPU
    picked = {0, total - 1, *drawn}
    for index in sorted(picked):
        image, target = dataset[index]
        same_image = isinstance(image, Tensor) and image.dtype == columns[0].dtype
        same_image = same_image and torch.equal(image, columns[0][index])  # SYNC: on the CPU
        if (
            not same_image
            or type(target) is not int
            or columns[1].dtype != torch.int64
            or target != int(columns[1][index])
        ):
            return len(picked), index
    return len(picked), None


def _one_line(transform: Any) -> str:
    return " ".join(repr(transform).split())[:120]
