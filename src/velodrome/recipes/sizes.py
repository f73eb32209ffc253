"""The sizes of a built-in model that a recipe leaves to the data: "auto"."""

from __future__ import annotations

import math
from typing import Any

from velodrome.errors import DataError, RecipeError
from velodrome.recipes.loaded_data import is_indexed
from velodrome.recipes.named_transforms import change_sample
from velodrome.recipes.schema import Recipe

__all__ = ["resolve_sizes"]


def resolve_sizes(recipe: Recipe, data: Any, *, num_classes: int = 0) -> Recipe:
    """Replace each "auto" of a built-in model by the number that the data have.

    `sizes = ["auto", ...]` of the MLP becomes the numbers of a sample; `vocab_size = "auto"` of the GPT, which is also
    its default, the number of different tokens, and `context = "auto"` the positions of a sample.

    Args:
        recipe: as read.
        data: inputs as one tensor, a tuple of tensors with the inputs first, or a dataset.
        num_classes: how many classes, or tokens, the data have; 0 where they do not say.
    Raises:
        RecipeError: the data are an iterable, whose first sample cannot be looked at without using it up; or they do not
            say how many tokens there are.
    """
    wanted = _auto_sizes(recipe)
    if not wanted:
        return recipe
    field = next(iter(wanted))
    if not is_indexed(data) or isinstance(data, dict):
        begins = "begins with" if field == "sizes" else "is"
        raise RecipeError(f'model.{field} {begins} "auto", which works for tensors and datasets. Write the number.')
    sample = data[0][:1] if isinstance(data, tuple) else data[0][0]
    sample = change_sample(recipe.data.transforms, sample if isinstance(data, tuple) else sample[None])
    shape = sample.shape[1:]
    numbers = {"sizes": math.prod(shape), "vocab_size": num_classes, "context": math.prod(shape[-1:])}
    if "vocab_size" in wanted and not num_classes:
        raise RecipeError(
            f'model.vocab_size is "auto", and data.name="{recipe.data.name}" does not say how many tokens there are. '
            "Write the number."
        )
    if not numbers["sizes"]:
        raise DataError(f"The samples have shape {tuple(sample.shape)}, which holds no number for the model to read.")
    tables = recipe.to_tables()
    for field, others in wanted.items():
        tables["model"][field] = [numbers[field], *others] if field == "sizes" else numbers[field]
    return Recipe.model_validate(tables)


def _auto_sizes(recipe: Recipe) -> dict[str, list[Any]]:  # Any: what TOML can hold; the rest of a list
    """Return the sizes of a built-in model that are to be measured."""
    given = recipe.model.arguments
    sizes = given.get("sizes")
    if recipe.model.name == "mlp" and sizes and sizes[0] == "auto":
        return {"sizes": sizes[1:]}
    if recipe.model.name == "gpt":
        return {field: [] for field in ("vocab_size", "context") if given.get(field, "auto") == "auto"}
    return {}
