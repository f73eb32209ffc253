"""Loaders over what a recipe's `[data]` gave, for training, evaluation and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError
from velodrome.recipes.loaded_data import LoadedData, is_indexed
from velodrome.recipes.named_transforms import make_transform
from velodrome.recipes.switches import loader_switches

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe

__all__ = ["evaluation_loader", "loader_arguments", "prediction_data", "training_loader"]


def training_loader(data: LoadedData, recipe: Recipe) -> Any:
    """Return a new loader over the training data, which stands at its first epoch."""
    size = recipe.train.loader_batch_size
    return _loader(data.train, recipe, batch_size=size, training=True)


def evaluation_loader(data: LoadedData, recipe: Recipe) -> Any:
    """Return a new loader over the validation data, which must be there."""
    return _loader(data.val, recipe, batch_size=recipe.train.eval_batch_size, training=False)


def prediction_data(rows: Any, recipe: Recipe) -> Any:
    """Return what `predict` is given: inputs, in a loader that changes them as evaluation data are where the recipe says so."""
    from velodrome.data.loader import DataLoader

    inputs = rows[0] if isinstance(rows, tuple) else rows  # targets after them
    transform = make_transform(recipe.data.transforms, training=False)
    return inputs if transform is None else DataLoader(inputs, recipe.train.eval_batch_size, transform=transform)


def _loader(data: Any, recipe: Recipe, *, batch_size: int, training: bool) -> Any:
    """Wrap tensors and datasets in a loader; a loader or another iterable of batches stays as it is."""
    from velodrome.data.loader import DataLoader

    if not is_indexed(data):
        if make_transform(recipe.data.transforms, training=training) is not None:
            raise RecipeError(
                f'data.transforms changes tensors and datasets, and data.name="{recipe.data.name}" gives a {type(data).__name__} of batches as '
                f"they are. Leave it out, or give the loader its transform= yourself.",
                problems=(),
            )
        return data
    return DataLoader(
        data,
        batch_size,
        drop_last=training and recipe.train.drop_last,
        **loader_arguments(recipe, training=training),
    )


def loader_arguments(recipe: Recipe, *, training: bool) -> dict[str, Any]:  # Any: what a DataLoader takes
    """Return what a recipe says of how batches are read and made, whatever their size."""
    return {
        "shuffle": training and recipe.train.shuffle,
        "num_workers": recipe.train.num_workers,
        "transform": make_transform(recipe.data.transforms, training=training),
        **loader_switches(recipe),
    }
