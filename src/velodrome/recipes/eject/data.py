"""The data of a recipe: read from the same files and prepared in the same way, without Velodrome."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from velodrome.recipes import registry
from velodrome.recipes.eject.code import Part, call, keywords
from velodrome.recipes.eject.images import images_part
from velodrome.recipes.eject.refuse import refusal
from velodrome.recipes.eject.table import table_part
from velodrome.recipes.eject.text import text_part
from velodrome.recipes.eject.user_code import import_as

if TYPE_CHECKING:
    from velodrome.recipes.build import Ready

__all__ = ["Data", "data_part"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """How a script gets its data."""

    part: Part
    lines: tuple[str, ...] = ()
    """of main(), where a callable of the user's gives the data: they set train_x, train_y and perhaps val_x and val_y"""
    option: str = ""
    """where the files are, the default of --data, which load_data() reads; empty for a callable of the user's"""
    help: str = ""
    """of --data"""
    about: str = ""
    """a sentence on what the data are and how to get them"""


def data_part(ready: Ready) -> Data:
    """Return how the script reads its data.

    Raises:
        RecipeError: the data are no tensors, or are prepared in a way that is not written out here.
    """
    name, data = ready.recipe.data.name, ready.data
    if registry.is_user_code(name):
        return _user_data(ready)
    if name in ("mnist", "fashion-mnist"):
        part = images_part(ready.recipe.data.arguments, data.files)
        where, what = data.files[0].parent, "The folder of the four files."
        about = f"{data.origin}. Get the four files with: velodrome data fetch {name}"
    elif name == "csv":
        part = table_part(ready.recipe.data.arguments, data)
        where, what, about = data.files[0], "The CSV file.", f"{data.origin}."
        if not ready.recipe.data.arguments.get("path"):
            about += " Get the file with: velodrome data fetch diabetes"
    elif name == "text":
        part = text_part(ready.recipe.data.arguments, data.files[0])
        where, what, about = data.files[0], "The text.", f"{data.origin}."
    else:
        raise refusal("data.name", name)
    return Data(part=part, option=_shortest(where), help=what, about=about)


def _user_data(ready: Ready) -> Data:
    recipe = ready.recipe
    for split in ("train", "val"):
        value = getattr(ready.data, split)
        is_pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, Tensor) for each in value)
        if not is_pair and not (split == "val" and value is None):
            raise refusal(
                "data.name",
                recipe.data.name,
                f"Its {split} data are a {type(value).__name__}, and a script is written for (inputs, targets), two tensors.",
            )
    if ready.data.class_names:
        raise refusal(
            "data.name", recipe.data.name, "It gives a Splits of Velodrome, which a plain script cannot import."
        )
    line, name = import_as(recipe.data.name, "load_own_data")
    targets = "(train_x, train_y), " + ("_" if ready.data.val is None else "(val_x, val_y)")
    lines = call(f"{targets} = {name}", keywords(recipe.data.arguments), level=1)
    return Data(part=Part(imports=(line,)), lines=tuple(lines.splitlines()), about=f"{ready.data.origin}")


def _shortest(path: Path) -> str:
    """Return the path from the current folder on, when it lies in there; it is the script's default."""
    path, here = Path(os.path.abspath(path)), Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()
