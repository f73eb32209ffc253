"""The data that a recipe can name: thin covers over `velodrome.data.sources`, whose annotations are the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence  # the recipe check reads these annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

if TYPE_CHECKING:
    from velodrome.data.sources.splits import Splits

Say = Callable[[str], Any]  # Any: what a printing function returns does not matter
Source = Literal["auto", "local", "system", "download", "embedded"]
Column = int | str
Fraction = Annotated[float, Field(gt=0, lt=1)]


def fashion_mnist(root: str = "", source: Source = "auto", normalize: bool = False, say: Say = print) -> Splits:
    """Return FashionMNIST: 60,000 + 10,000 pictures of clothes, or the part of it that is at hand."""
    from velodrome.data.sources import load_fashion_mnist

    return load_fashion_mnist(root or None, source=source, normalize=normalize, say=say)


def mnist(root: str = "", source: Source = "auto", normalize: bool = False, say: Say = print) -> Splits:
    """Return MNIST: 60,000 + 10,000 handwritten digits, or the part of it that is at hand."""
    from velodrome.data.sources import load_mnist

    return load_mnist(root or None, source=source, normalize=normalize, say=say)


def csv(
    path: str = "",
    target: Column = -1,
    numeric: Sequence[Column] | None = None,
    categorical: Sequence[Column] = (),
    header: bool | None = None,
    val_fraction: Fraction | None = None,
    train_rows: PositiveInt | None = None,
    val_path: str | None = None,
    seed: int = 0,
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
    say: Say = print,
) -> Splits:
    """Return a table; without a path the Pima diabetes table, which is fetched from its public address."""
    from velodrome.data.sources import fetch, load_csv

    file = Path(path) if path else fetch("diabetes", say=say)
    return load_csv(
        file,
        target=target,
        numeric=numeric,
        categorical=categorical,
        header=header,
        val_fraction=val_fraction,
        train_rows=train_rows,
        val_path=val_path,
        seed=seed,
        task=task,
        say=say,
    )


def text(
    path: str = "",
    window: PositiveInt = 128,
    stride: PositiveInt | None = None,
    train_fraction: Fraction = 0.9,
    vocabulary: Literal["train", "text"] = "train",
    say: Say = print,
) -> Splits:
    """Return windows of a text's characters and of those that follow them; without a path, a novel that comes along."""
    from velodrome.data.sources import load_text

    return load_text(
        path or None, window=window, stride=stride, train_fraction=train_fraction, vocabulary=vocabulary, say=say
    )
