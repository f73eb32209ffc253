"""`velodrome eval`: exact loss and metrics of trained weights."""

# ruff: noqa: TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import (
    Device,
    Json,
    Kind,
    Overrides,
    Quiet,
    RecipeOption,
    Run,
    Verbose,
    Weights,
    WeightsKind,
    Which,
)
from velodrome.cli.screen import Screen, show_metrics, table


def evaluate(
    run: Run,
    overrides: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="A table with the target column, instead of the run's validation data.", metavar="FILE.csv"
        ),
    ] = None,
    recipe: RecipeOption = None,
    weights: Weights = Which.best,
    kind: Kind = WeightsKind.auto,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure loss and metrics of trained weights.

    The data are the run's validation data, or a table of your own.

    Example: velodrome eval runs/my-run --json
    """
    from velodrome.errors import DataError
    from velodrome.recipes.build import build
    from velodrome.recipes.tables import check_same_preparation, check_table_run, load_rows_and_targets
    from velodrome.recipes.trained_model import find_weights, load_recipe_for, load_weights, read_notes

    screen = Screen(as_json=json, quiet=quiet)
    file = find_weights(run, weights.value, kind.value)
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    loaded = load_recipe_for(run, recipe, changes)
    notes = read_notes(run)
    check_table_run(run, loaded.recipe, overrides or [], notes)
    given = None if data is None else load_rows_and_targets(data, loaded.recipe, notes, say=screen.say_data)
    ready = build(loaded, data=given, say=screen.say_data, first_weights=False)
    if data is None:
        check_same_preparation(ready.data, notes)
    if ready.val is None:
        raise DataError(f"The recipe {ready.name} has no validation data to evaluate on.")
    load_weights(ready.model, file, run, weights.value)
    screen.say(f"Weights: {file}")
    found = ready.make_trainer(progress=not quiet).evaluate(ready.val)
    screen.answer(
        table([(key, show_metrics({key: value}).rpartition(" ")[2]) for key, value in found.items()]),
        {"weights": str(file), "data": ready.data.origin, "metrics": found},
    )
