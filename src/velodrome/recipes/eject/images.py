"""Images of the MNIST family, read from their IDX files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.recipes.eject.code import Part
from velodrome.recipes.eject.refuse import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["images_part"]

_READ_IDX = '''\
def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file: two zeros, a type, the number of dimensions, sizes, bytes."""
    with {open} as file:
        num_dims = file.read(4)[3]
        shape = [int.from_bytes(file.read(4), "big") for _ in range(num_dims)]
        return np.frombuffer(file.read(), dtype=np.uint8).reshape(shape)
'''
_LOAD_SPLIT = '''\
def load_split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 28, 28), pixels in 0..1, and labels (N,)."""
    images = read_idx(folder / f"{{name}}-images-idx3-ubyte{suffix}").astype("float32")
    labels = read_idx(folder / f"{{name}}-labels-idx1-ubyte{suffix}").astype("int64")
    return torch.from_numpy(images).div(255).unsqueeze(1), torch.from_numpy(labels)
'''
_LOAD = '''\
def load_data(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, and images and labels for validation."""
    return *load_split(folder, "train"), *load_split(folder, "t10k")
'''
_LOAD_NORMALIZED = '''\
def load_data(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, and images and labels for validation."""
    train_x, train_y = load_split(folder, "train")
    val_x, val_y = load_split(folder, "t10k")
    std, mean = torch.std_mean(train_x)  # of all training pixels, for both
    return (train_x - mean) / std, train_y, (val_x - mean) / std, val_y
'''


def images_part(arguments: Mapping[str, Any], files: Sequence[Path]) -> Part:
    """Return the functions that read the four files.

    Args:
        arguments: of `[data]`.
        files: as they were found.
    Raises:
        RecipeError: some are compressed and some are not.
    """
    suffixes = {path.suffix for path in files}
    if len(suffixes) > 1:
        raise refusal(
            "data.name", str(files[0].parent), "Some of its four files are gzipped and some are not: make them alike."
        )
    is_zipped = suffixes == {".gz"}
    opened = "gzip.open(path)" if is_zipped else 'path.open("rb")'
    return Part(
        imports=("import numpy as np", *(["import gzip"] if is_zipped else [])),
        definitions=(
            _READ_IDX.format(open=opened),
            _LOAD_SPLIT.format(suffix=".gz" if is_zipped else ""),
            _LOAD_NORMALIZED if arguments.get("normalize") else _LOAD,
        ),
    )
