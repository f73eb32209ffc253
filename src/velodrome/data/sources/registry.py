"""The data sets that have a name, and `fetch`, which brings one to this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from velodrome.data.sources.csv_file import read_table
from velodrome.data.sources.download import download
from velodrome.data.sources.image_sets import FASHION_MNIST, MNIST, fetch_image_set
from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fetch", "known_names"]

_IMAGE_SETS = {data.name: data for data in (FASHION_MNIST, MNIST)}
_DIABETES_URLS = ("https://raw.githubusercontent.com/jbrownlee/Datasets/master/pima-indians-diabetes.data.csv",)
_DIABETES_SHA256 = "3e5bd23b2c24c83178bcc3a4649e4339c1a248d5bead9c896b19af974b2cdee5"
"""of the 768 x 9 numbers as float64, row by row: a header, line ends or "1" against "1.0" do not matter"""


def known_names() -> list[str]:
    """Return the names that `fetch` accepts."""
    return ["diabetes", *sorted(_IMAGE_SETS)]


def fetch(
    name: str, root: str | Path | None = None, *, source: str = "auto", say: Callable[[str], object] = print
) -> Path:
    """Bring a data set to this machine, unless it is there, and say where it is.

    Args:
        name: one of `known_names()`.
        root: where to look and to put it; `data/<name>` when left out.
        source: see `load_fashion_mnist`; for "diabetes" only "auto", "local" and "download".
        say: gets lines for people.
    Returns:
        The folder of an image set, the file of a table.
    Raises:
        ArgumentError: an unknown name or source.
        DataError: it could not be had, with what was tried.
    """
    if name in _IMAGE_SETS:
        files, place = fetch_image_set(_IMAGE_SETS[name], root, source=source, say=say)
        folder = next(iter(files.values())).parent
        say(f"{_IMAGE_SETS[name].title}: {place}")
        return folder
    if name != "diabetes":
        raise ArgumentError(f"data set {name!r} is unknown. {nearest(name, known_names())}")
    path = _fetch_diabetes(Path("data") / name if root is None else Path(root), source)
    say(f"Pima diabetes table: {path}")
    return path


def hash_numbers(values: numpy.ndarray) -> str:
    """Return the SHA-256 of a table's numbers as little-endian float64, row by row."""
    return hashlib.sha256(numpy.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()


def _fetch_diabetes(folder: Path, source: str) -> Path:
    if source not in ("auto", "local", "download"):
        raise ArgumentError(f'source={source!r} does not have the diabetes table. Use "auto", "local" or "download".')
    local = sorted(folder.glob("*.csv"))
    if local and source != "download":
        return _pick_diabetes(local)
    if source == "local":
        raise DataError(
            f"{folder} holds no .csv file. Put the Pima diabetes table there, or run: velodrome data fetch diabetes"
        )
    target = folder / "pima-indians-diabetes.csv"
    try:
        download(_DIABETES_URLS, target, check=_check_diabetes)
    except DataError as error:
        raise DataError(
            f"{error} Put the table into {folder}, or train on a table of your own: data.path=my.csv"
        ) from error
    return target


def _pick_diabetes(paths: Sequence[Path]) -> Path:
    """Return the first file that is the table; what is wrong with the first one when none is."""
    problem = None
    for path in paths:
        try:
            _check_diabetes(path)
        except DataError as error:
            problem = problem or error
        else:
            return path
    assert problem is not None
    raise problem


def _check_diabetes(path: Path) -> None:
    """Refuse a file that is not the table, whatever its header and line ends.

    Raises:
        DataError: other numbers, or another shape.
    """
    table = read_table(path)
    values = numpy.stack([table.numbers(name) for name in table.names], axis=1)
    if values.shape != (768, 9) or hash_numbers(values) != _DIABETES_SHA256:
        raise DataError(
            f"{path} holds {values.shape[0]} x {values.shape[1]} numbers that are not the Pima diabetes table (768 x 9, SHA-256 {_DIABETES_SHA256[:12]}...). "
            f"Remove it to fetch the table, or train on your own one with data.path={path}",
            path=path,
        )
