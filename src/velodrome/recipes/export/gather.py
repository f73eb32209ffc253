"""What an export is made of: the model as the recipe builds it, inputs for it, and what is said about both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import velodrome
from velodrome.errors import DataError
from velodrome.recipes.export.example import Example, draw_example, read_example
from velodrome.recipes.export.metadata import describe_preparation, find_origin
from velodrome.recipes.toml_writer import to_toml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from velodrome.recipes.read import LoadedRecipe
    from velodrome.recipes.schema import Recipe
    from velodrome.recipes.trained_model import RunNotes

__all__ = ["gather_metadata", "prepare_model"]


def prepare_model(loaded: LoadedRecipe, notes: RunNotes, *, say: Callable[[str], Any]) -> tuple[nn.Module, Example]:
    """Build the model, without trained weights, and find inputs for it.

    Args:
        loaded: the run's recipe, or the one that the user trusts.
        notes: of the run, which say enough of the inputs of a table or a text whose file is gone.
        say: gets lines about the data.
    Raises:
        RecipeError: the recipe names code and is not trusted.
        DataError: the data cannot be read, and the notes do not suffice.
    """
    from velodrome.recipes.build import build_model
    from velodrome.recipes.calls import refuse_untrusted
    from velodrome.recipes.loaded_data import load_data
    from velodrome.recipes.sizes import resolve_sizes

    recipe = loaded.recipe
    for table in ("model", "data"):
        refuse_untrusted(f"{table}.name", getattr(recipe, table).name, trusted=loaded.trusted)
    try:
        data = load_data(recipe, say=say)
    except DataError as error:
        example = _draw(notes)
        if example is None:
            raise
        say(f"{error.message} The shapes that the run noted are enough: inputs are drawn.")
        return build_model(recipe, trusted=loaded.trusted), example
    model = build_model(resolve_sizes(recipe, data.train, num_classes=len(data.class_names)), trusted=loaded.trusted)
    return model, read_example(data, recipe)


def gather_metadata(file: Path, recipe: Recipe | None, notes: RunNotes) -> dict[str, Any]:
    """Return what an exported file says about itself, but for inputs and outputs.

    Args:
        file: of the weights.
        recipe: what they were trained by, where it is known.
        notes: of the run.
    """
    metadata: dict[str, Any] = {
        "velodrome": velodrome.__version__,
        "torch": torch.__version__,
        **find_origin(file).to_json(),
        "classes": list(notes.class_names),
    }
    if recipe is not None:
        metadata |= {
            "loss": recipe.loss.name,
            "precision": recipe.train.precision or "fp32",
            "preparation": describe_preparation(recipe, notes),
            "recipe": to_toml(recipe.to_tables()),
        }
    return metadata


def _draw(notes: RunNotes) -> Example | None:
    """Return drawn inputs of the shape that the run's preprocessing.json says, if it does."""
    kept = notes.preprocessing
    if (
        kept.get("kind") == "csv"
        and isinstance(kept.get("numeric"), dict)
        and isinstance(kept.get("categorical"), dict)
    ):
        return draw_example((len(kept["numeric"]) + sum(map(len, kept["categorical"].values())),))
    if kept.get("kind") == "text" and isinstance(kept.get("window"), int) and isinstance(kept.get("vocabulary"), list):
        return draw_example((kept["window"],), below=len(kept["vocabulary"]))
    return None
