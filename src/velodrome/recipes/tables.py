"""A trained model meets a table: new rows are prepared as the training rows were, and never in another way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from velodrome.errors import CheckpointError, DataError, RecipeError
from velodrome.recipes.callbacks import PREPROCESSING_FILE
from velodrome.recipes.loaded_data import LoadedData

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from velodrome.recipes.schema import Recipe
    from velodrome.recipes.trained_model import RunNotes

# How rows are split says nothing about a table that is used whole.
_SPLITS = ("path", "train_rows", "val_fraction", "val_path")
_NEEDED: dict[str, type] = {
    "numeric": dict, "categorical": dict, "has_names": bool, "target": str, "target_position": int, "num_columns": int,
    "class_names": list, "task": str,
}  # fmt: skip


def check_table_run(run: Path, recipe: Recipe, overrides: Sequence[str], notes: RunNotes) -> None:
    """Refuse what would prepare rows for this run's weights in another way than its training rows.

    Does nothing for a run that was not trained on a table.

    Args:
        run: what the user named: a run directory, a checkpoint folder or a weights file.
        recipe: the run's, overrides included.
        overrides: as given; one of `[data]` would fit means, deviations and categories anew.
        notes: the run's own.
    Raises:
        RecipeError: an override changes `[data]`.
        CheckpointError: preprocessing.json is missing or is not what the recipe needs.
    """
    if recipe.data.name != "csv" and notes.preprocessing.get("kind") != "csv":
        return
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip().startswith("data."):
            file = value.strip().strip("\"'") if key.strip() in ("data.path", "data.val_path") else "FILE.csv"
            raise RecipeError(
                f"{override} would prepare the rows with new means, deviations and categories, not with those that these "
                f"weights were trained with, and would leave out the rows of a training part. A trained run takes no data.* "
                f"changes: give the table with --data {file}, which uses the run's own preprocessing.",
                override=override,
            )
    if recipe.data.name == "csv":
        problem = _find_problem(notes.preprocessing, recipe)
        if problem:
            raise CheckpointError(
                f"The {PREPROCESSING_FILE} of {run} {problem}, so rows cannot be prepared as the training rows were. "
                "Restore the file, or train again.",
                path=run,
            )


def check_same_preparation(data: LoadedData, notes: RunNotes) -> None:
    """Refuse a table or text that was loaded anew and is no longer the one that the run was trained on.

    Raises:
        DataError: a table gives other means, deviations, categories or classes; a text numbers its characters otherwise.
    """
    if notes.preprocessing.get("kind") == data.preprocessing.get("kind") == "text":
        _check_same_vocabulary(data, notes)
    if notes.preprocessing.get("kind") != "csv" or data.preprocessing.get("kind") != "csv":
        return
    for key in _NEEDED:
        if not _is_close(data.preprocessing.get(key), notes.preprocessing.get(key)):
            raise DataError(
                f"{data.origin}: this is not the table that the run was trained on; its {key!r} differs from that in "
                f"{PREPROCESSING_FILE}. Give the table as it is now with --data FILE.csv, which uses the run's own "
                "preprocessing."
            )


def _check_same_vocabulary(data: LoadedData, notes: RunNotes) -> None:
    mine, theirs = data.class_names, notes.class_names
    if mine != theirs:
        odd = sorted(set(mine) ^ set(theirs))
        which = f"; {odd[0]!r} is one that only one of them has" if odd else ""
        raise DataError(
            f"{data.origin}: this text has {len(mine)} different characters where the run was trained on {len(theirs)}{which}. "
            "Each number would stand for another character: give the text that the run was trained on."
        )


def load_rows(path: Path, recipe: Recipe, notes: RunNotes, *, say: Callable[[str], Any] = print) -> Tensor:
    """Return the inputs of a table, standardised with the statistics of the training rows.

    Raises:
        RecipeError: the run was not trained on a table.
        DataError: the table cannot be read or lacks a column.
    """
    from velodrome.data.sources import prepare_csv_rows

    if recipe.data.name != "csv":
        raise RecipeError(
            f'--data={path} is a table, but this run was trained on data.name="{recipe.data.name}". '
            "Leave --data out to use the run's validation data."
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


def _find_problem(preprocessing: Mapping[str, Any], recipe: Recipe) -> str:
    """Return what keeps these notes from preparing rows for the recipe's model, or ""."""
    if not preprocessing:
        return "is missing or holds nothing"
    for key, kind in _NEEDED.items():
        if not isinstance(preprocessing.get(key), kind):
            return f"holds no {key!r}"
    for name, fitted in preprocessing["numeric"].items():
        values = [fitted.get(key) for key in ("mean", "std")] if isinstance(fitted, dict) else [None]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values) or not values[-1]:
            return f"holds no mean and deviation of the column {name!r}"
    if not all(isinstance(values, list) for values in preprocessing["categorical"].values()):
        return "holds no lists of categories"
    num_inputs = len(preprocessing["numeric"]) + sum(map(len, preprocessing["categorical"].values()))
    sizes = recipe.model.arguments.get("sizes")
    if recipe.model.name == "mlp" and isinstance(sizes, list) and sizes[0] not in ("auto", num_inputs):
        return f"prepares {num_inputs} inputs where the model takes {sizes[0]}"
    return ""


def _is_close(one: Any, other: Any) -> bool:  # Any: JSON
    """Return whether two values are the same, numbers up to what another machine rounds differently."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_is_close(one[key], other[key]) for key in one)
    return one == other
