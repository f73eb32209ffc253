"""`velodrome eval`: exact loss and metrics of trained weights."""

# ruff: noqa: TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Device, Json, Overrides, Quiet, RecipeOption, Run, Verbose, Weights, Which
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
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure loss and metrics of trained weights.

    The data are the run's validation data, or a table of your own.

    Example: velodrome eval runs/my-run --json
    """
    from velodrome.checkpoint.read import load_weights_into, resolve_weights
    from velodrome.errors import DataError
    from velodrome.recipes.build import build
    from velodrome.recipes.loading import load_recipe_for

    screen = Screen(as_json=json, quiet=quiet)
    file = resolve_weights(run, weights.value)
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    if data is not None:
        changes.append(f"data.val_path={_quoted(data)}")
    ready = build(load_recipe_for(run, recipe, changes), say=screen.say)
    if ready.val is None:
        raise DataError(f"The recipe {ready.name} has no validation data to evaluate on.")
    load_weights_into(ready.model, run, which=weights.value)
    screen.say(f"Data: {ready.data.origin}")
    screen.say(f"Weights: {file}")
    found = ready.make_trainer(progress=not quiet).evaluate(ready.val)
    screen.answer(
        table([(key, show_metrics({key: value}).rpartition(" ")[2]) for key, value in found.items()]),
        {"weights": str(file), "data": ready.data.origin, "metrics": found},
    )


def _quoted(path: Path) -> str:
    from velodrome.recipes.toml_writer import toml_value

    return toml_value(str(path))
