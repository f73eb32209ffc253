"""A table of new rows for a trained model: prepared as the training rows were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import DataError, RecipeError
from velodrome.recipes.build import LoadedData

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from velodrome.recipes.loading import RunNotes
    from velodrome.recipes.schema import Recipe

# How rows are split says nothing about a table that is used whole.
_SPLITS = ("path", "train_rows", "val_fraction", "val_path")


def load_rows(path: Path, recipe: Recipe, notes: RunNotes, *, say: Callable[[str], Any] = print) -> Tensor:
    """Return the inputs of a table, standardised with the statistics of the training rows.

    Raises:
        RecipeError: the run was not trained on a table, or its notes are gone.
        DataError: the table cannot be read or lacks a column.
    """
    from velodrome.data.sources import prepare_csv_rows

    if recipe.data.name != "csv" or not notes.preprocessing:
        raise RecipeError(
            f'--data={path} is a table, but this run was trained on data.name="{recipe.data.name}" '
            "or has lost its preprocessing.json. Leave --data out to use the run's validation data."
        )
    return prepare_csv_rows(path, notes.preprocessing, say=say)


def load_rows_and_targets(
    path: Path, recipe: Recipe, notes: RunNotes, *, say: Callable[[str], Any] = print
) -> LoadedData:
    """Return a whole table, targets included, as data to evaluate on.

    Raises:
        RecipeError, DataError: as `load_rows`; and the table's classes are not those of the run.
    """
    from velodrome.data.sources import load_csv

    inputs = load_rows(path, recipe, notes, say=say)
    arguments: dict[str, Any] = {"target": -1, **recipe.data.arguments}
    for name in _SPLITS:
        arguments.pop(name, None)
    # Only the targets are taken from here: these inputs are standardised with the table's own statistics.
    table = load_csv(path, val_path=path, say=lambda line: None, **arguments)
    if tuple(table.class_names) != notes.class_names:
        raise DataError(
            f"{path} has the classes {', '.join(table.class_names)}; the run was trained on "
            f"{', '.join(notes.class_names)}. They must be the same, so that class numbers mean the same."
        )
    data = (inputs, table.val[1])
    origin = f"{path}: {len(inputs):,} rows, prepared as the training rows were."
    say(origin)
    return LoadedData(train=data, val=data, origin=origin)
