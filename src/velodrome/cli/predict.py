"""`velodrome predict`: what a trained model says about each sample, as a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.options import Device, Json, Overrides, Quiet, RecipeOption, Run, Verbose, Weights, Which
from velodrome.cli.screen import Screen

if TYPE_CHECKING:
    from velodrome.recipes.loading import RunNotes
    from velodrome.recipes.schema import Recipe


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
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write predictions to a CSV file.

    Its columns: index, predicted class, and a probability for each class.

    Example: velodrome predict runs/my-run --data new.csv --out predictions.csv
    """
    from velodrome.checkpoint.read import load_weights_into, resolve_weights
    from velodrome.errors import RefusedError
    from velodrome.recipes.build import build_model, resolve_sizes
    from velodrome.recipes.loading import load_recipe_for, read_notes
    from velodrome.recipes.predictions import interpret, write_csv

    if out.exists() and not force:
        raise RefusedError(f"{out} exists already. Give another --out, or --force to write over it.", path=out)
    screen = Screen(as_json=json, quiet=quiet)
    file = resolve_weights(run, weights.value)
    loaded = load_recipe_for(run, recipe, [*(overrides or []), *([f"train.device={device}"] if device else [])])
    notes = read_notes(run)
    rows, origin = _rows(loaded, notes, data, screen)
    model = build_model(resolve_sizes(loaded.recipe, rows), trusted=loaded.trusted)
    load_weights_into(model, run, which=weights.value)
    screen.say(f"Data: {origin}")
    screen.say(f"Weights: {file}")
    outputs = _outputs(model, rows, loaded.recipe)
    predictions = interpret(outputs, loss=loaded.recipe.loss.name, class_names=notes.class_names)
    write_csv(out, predictions)
    screen.answer(
        f"Predictions: {out} ({len(predictions.rows):,} rows: {', '.join(predictions.header)})",
        {"predictions": str(out), "rows": len(predictions.rows), "columns": predictions.header, "weights": str(file)},
    )


def _rows(loaded: Any, notes: RunNotes, data: Path | None, screen: Screen) -> tuple[Any, str]:
    """Return what to predict and where it came from."""
    from velodrome.errors import DataError, RecipeError
    from velodrome.recipes.build import load_data, refuse_untrusted

    if data is None:
        refuse_untrusted(loaded, "data")
        given = load_data(loaded.recipe, say=screen.say)
        if given.val is None:
            raise DataError("The recipe has no validation data to predict. Give a table with --data.")
        return given.val, given.origin
    if loaded.recipe.data.name != "csv" or not notes.preprocessing:
        raise RecipeError(
            f'--data={data} is a table, but this run was trained on data.name="{loaded.recipe.data.name}". '
            "Tables fit runs that were trained on one; leave --data out to predict the validation data."
        )
    from velodrome.data.sources import prepare_csv_rows

    rows = prepare_csv_rows(data, notes.preprocessing)
    return (rows,), f"{data}: {len(rows):,} rows, prepared with the statistics of the training rows."


def _outputs(model: Any, rows: Any, recipe: Recipe) -> Any:  # Any: torch, which this file imports only when run
    from velodrome.trainer import Trainer

    trainer = Trainer(model, device=recipe.train.device, progress=False, checkpoint=None, loggers=())
    if isinstance(rows, tuple):
        rows = rows[0]  # without the targets
    return trainer.predict(rows, batch_size=recipe.train.eval_batch_size)
