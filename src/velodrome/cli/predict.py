"""`velodrome predict`: what a trained model says about each sample, as a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from velodrome.cli.screen import Screen

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe
    from velodrome.recipes.trained_model import RunNotes


def predict(
    run: Run,
    overrides: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A table to predict; default: the run's validation data.", metavar="FILE.csv"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.", metavar="FILE.csv")] = Path(
        "predictions.csv"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    recipe: RecipeOption = None,
    weights: Weights = Which.best,
    kind: Kind = WeightsKind.auto,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write predictions to a CSV file.

    Its columns: index, predicted class, and a probability for each class.

    Example: velodrome predict runs/my-run --data new.csv --out predictions.csv
    """
    from velodrome.errors import RefusedError
    from velodrome.recipes.build import build_model
    from velodrome.recipes.predictions import interpret, write_csv
    from velodrome.recipes.sizes import resolve_sizes
    from velodrome.recipes.tables import check_table_run
    from velodrome.recipes.trained_model import find_weights, load_recipe_for, load_weights, read_notes

    if out.exists() and not force:
        raise RefusedError(f"{out} exists already. Give another --out, or --force to write over it.", path=out)
    screen = Screen(as_json=json, quiet=quiet, answer_matters=False)
    file = find_weights(run, weights.value, kind.value)
    loaded = load_recipe_for(run, recipe, [*(overrides or []), *([f"train.device={device}"] if device else [])])
    notes = read_notes(run)
    check_table_run(run, loaded.recipe, overrides or [], notes)
    rows = _rows(loaded, notes, data, screen)
    model = build_model(resolve_sizes(loaded.recipe, rows), trusted=loaded.trusted)
    load_weights(model, file, run, weights.value)
    screen.say(f"Weights: {file}")
    outputs = _outputs(model, rows, loaded.recipe)
    predictions = interpret(outputs, loss=loaded.recipe.loss.name, class_names=notes.class_names)
    write_csv(out, predictions)
    screen.answer(
        f"Predictions: {out} ({len(predictions.rows):,} rows: {', '.join(predictions.header)})",
        {"predictions": str(out), "rows": len(predictions.rows), "columns": predictions.header, "weights": str(file)},
    )


def _rows(loaded: Any, notes: RunNotes, data: Path | None, screen: Screen) -> Any:  # Any: torch, or the user's own data
    """Return what to predict."""
    from velodrome.errors import DataError
    from velodrome.recipes.calls import refuse_untrusted
    from velodrome.recipes.loaded_data import load_data
    from velodrome.recipes.tables import check_same_preparation, load_rows

    if data is None:
        refuse_untrusted("data.name", loaded.recipe.data.name, trusted=loaded.trusted)
        given = load_data(loaded.recipe, say=screen.say_data)
        if given.val is None:
            raise DataError("The recipe has no validation data to predict. Give a table with --data.")
        check_same_preparation(given, notes)
        return given.val
    rows = load_rows(data, loaded.recipe, notes, say=screen.say_data)
    screen.say_data(f"{data}: {len(rows):,} rows, prepared as the training rows were.")
    return (rows,)


def _outputs(model: Any, rows: Any, recipe: Recipe) -> Any:  # Any: torch, which this file imports only when run
    import velodrome
    from velodrome.recipes.loaders import prediction_data

    data = prediction_data(rows, recipe)
    size = recipe.train.eval_batch_size if isinstance(rows, tuple) and data is rows[0] else None
    return velodrome.predict(model, data, batch_size=size, device=recipe.train.device)
