"""FashionMNIST and MNIST, from the first place that has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from velodrome.data.sources.download import check_sha256, download
from velodrome.data.sources.idx import read_idx
from velodrome.data.sources.places import (
    embedded_folder,
    find_files,
    local_folders,
    system_folders,
    unpack_system_package,
)
from velodrome.data.sources.splits import Splits
from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FASHION_MNIST", "MNIST", "ImageSet", "Place", "fetch_image_set", "load_fashion_mnist", "load_mnist"]

Place = Literal["auto", "local", "system", "download", "embedded"]
_PLACES = ("auto", "local", "system", "download", "embedded")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_ALL_FILES = [name for pair in _FILES.values() for name in pair]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One data set of the family and everything that is known of its files."""

    name: str
    title: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]
    """of the published .gz files, by name without their suffix"""
    class_names: tuple[str, ...]
    system_package: str | None = None


FASHION_MNIST = ImageSet(
    name="fashion-mnist",
    title="FashionMNIST",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    sha256={
        "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    class_names=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    system_package="dataset-fashion-mnist",
)  # fmt: skip
MNIST = ImageSet(
    name="mnist",
    title="MNIST",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    sha256={
        "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    class_names=tuple("0123456789"),
)


def load_fashion_mnist(
    root: str | Path | None = None,
    *,
    source: Place = "auto",
    normalize: bool = False,
    say: Callable[[str], object] = print,
) -> Splits:
    """Return FashionMNIST: images float32 (N, 1, 28, 28) in 0..1, labels int64 (N,).

    Args:
        root: the local folder; `data/fashion-mnist` when left out.
        source: "auto" tries the local folder, the system package, the official download and the embedded subset of 8,000 +
            2,000, in this order; or one of them: "local", "system", "download", "embedded".
        normalize: shift and scale all pixels by the mean and standard deviation of the training pixels.
        say: gets the line that says which it was.
    Raises:
        DataError: files that are there are damaged, or the source asked for has none.
    """
    return _load(FASHION_MNIST, root, source, normalize, say)


def load_mnist(
    root: str | Path | None = None,
    *,
    source: Place = "auto",
    normalize: bool = False,
    say: Callable[[str], object] = print,
) -> Splits:
    """Return MNIST: images float32 (N, 1, 28, 28) in 0..1, labels int64 (N,). Arguments as for `load_fashion_mnist`."""
    return _load(MNIST, root, source, normalize, say)


def fetch_image_set(
    data: ImageSet, root: str | Path | None = None, *, source: str = "auto", say: Callable[[str], object] = print
) -> tuple[dict[str, Path], str]:
    """Return where the four files lie and a phrase that says what place it is, bringing them there first if need be."""
    if source not in _PLACES:
        raise ArgumentError(f"source={source!r} is not a source. {nearest(str(source), _PLACES)}")
    base = None if root is None else Path(root)
    if source in ("auto", "local"):
        found = find_files(local_folders(data.name, data.title, base), _ALL_FILES)
        if found is not None:
            return found, f"the local folder {_folder(found)}"
        _say_what_is_missing(data, local_folders(data.name, data.title, base), say)
    if source in ("auto", "system"):
        found = find_files(system_folders(data.name), _ALL_FILES)
        if found is not None:
            return found, f"the system package in {_folder(found)}"
        target = Path("data") / data.name if base is None else base
        if data.system_package is not None and _try_package(data, target, say):
            found = find_files([target], _ALL_FILES)
            if found is not None:
                return found, f"the system package {data.system_package}, unpacked into {_folder(found)}"
    if source in ("auto", "download"):
        target = Path("data") / data.name if base is None else base
        _check_present(data, target, say)
        try:
            files, num_new = _download(data, target, say)
            place = f"the official download, now in {target}" if num_new else f"{target}, where no file was missing"
            return files, place
        except DataError as error:
            if source == "download":
                raise
            say(f"{data.title}: no download. {error}")
    if source in ("auto", "embedded"):
        found = find_files([embedded_folder(data.name)], _ALL_FILES)
        assert found is not None
        return found, "the embedded subset"
    looked = [
        str(path)
        for path in (local_folders(data.name, data.title, base) if source == "local" else system_folders(data.name))
    ]
    raise DataError(
        f"{data.title} has no files in {', '.join(looked)}. It wants {', '.join(f'{name}.gz' for name in _ALL_FILES)}. "
        f"Run: velodrome data fetch {data.name}"
    )


def _load(
    data: ImageSet, root: str | Path | None, source: Place, normalize: bool, say: Callable[[str], object]
) -> Splits:
    files, place = fetch_image_set(data, root, source=source, say=say)
    remedy = f"Remove it and run: velodrome data fetch {data.name}"
    train, val = (
        _read_split(*(files[name] for name in _FILES[split]), num_classes=len(data.class_names), remedy=remedy)
        for split in ("train", "val")
    )
    preprocessing = {}
    if normalize:
        std, mean = torch.std_mean(train[0])
        if std == 0:
            raise DataError(
                f"{files[_FILES['train'][0]]}: every pixel is {float(mean):g}, so images cannot be normalised. {remedy}"
            )
        for images, _ in (train, val):
            images.sub_(mean).div_(std)
        preprocessing = {"kind": "images", "mean": float(mean), "std": float(std)}
    origin = f"{data.title}: {len(train[0]):,} + {len(val[0]):,} images from {place}"
    say(origin)
    return Splits(
        train=train,
        val=val,
        origin=origin,
        class_names=data.class_names,
        preprocessing=preprocessing,
        files=tuple(files[name] for name in _ALL_FILES),
    )


def _read_split(images_path: Path, labels_path: Path, *, num_classes: int, remedy: str) -> tuple[Tensor, Tensor]:
    images = read_idx(images_path, num_dims=3, remedy=remedy)
    labels = read_idx(labels_path, num_dims=1, remedy=remedy)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images, {labels_path} holds {len(labels):,} labels. {remedy}"
        )
    if images.shape[1:] != (28, 28) or not len(images):
        raise DataError(
            f"{images_path} holds {len(images):,} images of {images.shape[1]} x {images.shape[2]}. "
            f"There must be at least one, of 28 x 28. {remedy}",
            path=images_path,
        )
    if labels.max() >= num_classes:
        raise DataError(
            f"{labels_path} holds the label {labels.max()} at index {labels.argmax()}. "
            f"Labels go from 0 to {num_classes - 1}. {remedy}",
            path=labels_path,
        )
    # The arithmetic of torchvision's ToTensor, on the whole array: bit for bit the same numbers.
    values = torch.from_numpy(images.astype("float32")).div_(255).unsqueeze_(1)
    return values, torch.from_numpy(labels.astype("int64"))


def _try_package(data: ImageSet, target: Path, say: Callable[[str], object]) -> bool:
    assert data.system_package is not None
    say(f"{data.title}: asking the system's packages for {data.system_package} ...")
    try:
        return unpack_system_package(data.system_package, data.name, target, names=_ALL_FILES)
    except OSError as error:  # a folder that cannot be written to; the embedded subset still can be read
        say(f"{data.title}: {target} cannot be written to ({error.strerror or error}).")
        return False


def _download(data: ImageSet, target: Path, say: Callable[[str], object]) -> tuple[dict[str, Path], int]:
    """Fetch the files that are not there; return where all of them lie and how many were fetched."""
    files = {name: target / f"{name}.gz" for name in data.sha256}
    missing = [name for name, path in files.items() if not os.path.exists(path)]
    if missing:
        say(f"{data.title}: downloading into {target} ...")
    for name in missing:
        addresses = [mirror + files[name].name for mirror in data.mirrors]
        download(addresses, files[name], check=partial(check_sha256, sha256=data.sha256[name]))
    return files, len(missing)


def _check_present(data: ImageSet, target: Path, say: Callable[[str], object]) -> None:
    """Refuse to complete a folder in which a file is damaged; say which files are kept that are not the published ones.

    They need not be: a system package holds the same data, compressed anew.

    Raises:
        DataError: names the file.
    """
    remedy = f"Remove it and run: velodrome data fetch {data.name}"
    for name, sha256 in data.sha256.items():
        path = target / f"{name}.gz"
        if not os.path.exists(path):  # also False in a folder that may not be entered; writing there will say why
            continue
        try:
            check_sha256(path, sha256)
        except (DataError, OSError):
            read_idx(path, num_dims=3 if "images" in name else 1, remedy=remedy)
            say(f"{data.title}: {path} was there before and is kept; it is not the published file.")


def _say_what_is_missing(data: ImageSet, folders: list[Path], say: Callable[[str], object]) -> None:
    """Say which files a folder lacks that has some of them."""
    for folder in folders:
        missing = [name for name in _ALL_FILES if find_files([folder], [name]) is None]
        if len(missing) < len(_ALL_FILES):
            say(f"{data.title}: {folder} lacks {', '.join(f'{name}.gz' for name in missing)}.")


def _folder(files: dict[str, Path]) -> Path:
    return next(iter(files.values())).parent
