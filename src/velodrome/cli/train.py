"""`velodrome train`: a recipe becomes a run."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.options import Device, Json, Overrides, Quiet, Verbose
from velodrome.cli.run_names import choose_run_dir
from velodrome.cli.screen import Screen, show_metrics, table

if TYPE_CHECKING:
    from velodrome.loop.result import FitResult
    from velodrome.recipes.build import Ready


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a .toml file.", metavar="RECIPE")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that holds runs.", metavar="DIR")] = Path("runs"),
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name; default: recipe, time and id.", metavar="NAME")
    ] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, try one step and one evaluation, write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model from a recipe.

    Example: velodrome train fashion-mnist-mlp optimizer.lr=0.01 train.epochs=20
    """
    from velodrome.recipes.build import build
    from velodrome.recipes.read import load_recipe

    screen = Screen(as_json=json, quiet=quiet)
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    if quiet:
        changes.append("logging.progress=false")
    loaded = load_recipe(recipe, changes)
    run_dir = choose_run_dir(out, name, loaded.name)
    screen.say(f"Recipe: {loaded.name}")
    ready = build(loaded, say=screen.say)
    screen.say(f"Data: {ready.data.origin}")
    if dry_run:
        _try_out(ready, screen)
        return
    trainer = ready.make_trainer(run_dir=run_dir)
    screen.say(_describe_model(ready))
    screen.say(f"Device: {trainer.device}")
    screen.say(f"Run: {run_dir}")
    result = trainer.fit(ready.train, ready.val, **ready.fit_arguments)
    _finish(result, screen)


def _try_out(ready: Ready, screen: Screen) -> None:
    """One step and one evaluation batch on a copy of the model, in memory."""
    trial = replace(ready, model=copy.deepcopy(ready.model)).make_trainer(progress=False)
    first_loss = trial.fit(ready.train, steps=1).metrics.get("train/loss")
    found = {} if ready.val is None else trial.evaluate([next(iter(ready.val))])
    steps = _num_batches(ready.train)
    budget = {key: value for key, value in ready.fit_arguments.items() if value is not None}
    epochs = budget.get("epochs")
    total = steps * epochs if steps is not None and epochs is not None else budget.get("steps")
    plan: dict[str, Any] = {
        "recipe": ready.name,
        "data": ready.data.origin,
        "num_parameters": sum(p.numel() for p in ready.model.parameters()),
        "device": str(trial.device),
        "budget": budget,
        "steps_per_epoch": steps,
        "total_steps": total,
        "evaluation_batches": None if ready.val is None else _num_batches(ready.val),
        "first_loss": first_loss,
        "first_evaluation": found,
        "tables": ready.recipe.to_tables(),
    }
    length = ", ".join(f"{value:g} {key}" for key, value in budget.items())
    rows = [
        ("Model", _describe_model(ready).removeprefix("Model: ")),
        ("Device", str(trial.device)),
        ("Optimizer", type(trial.optimizer).__name__),
        ("Length", f"{length}; {_count(steps)} steps an epoch, {_count(total)} in all"),
        ("Evaluation", f"{_count(plan['evaluation_batches'])} batches after every epoch"),
        ("First step", f"loss {first_loss:.4f}" if isinstance(first_loss, float) else "done"),
        ("First evaluation batch", show_metrics(found) or "there is no validation data"),
    ]
    screen.answer(f"{table(rows)}\nDry run: nothing was trained or written.", {"plan": plan})


def _finish(result: FitResult, screen: Screen) -> None:
    """Say how it ended and where everything is."""
    from velodrome.checkpoint import resolve_weights

    run_dir = result.run_dir
    assert run_dir is not None  # the verb always gives one
    files = {
        "run_dir": run_dir,
        "best_weights": resolve_weights(run_dir, "best"),
        "last_weights": resolve_weights(run_dir, "last"),
        "metrics": run_dir / "metrics.jsonl",
    }
    optional = {"curves": run_dir / "curves.png", "tensorboard": run_dir / "tb"}
    files |= {key: path for key, path in optional.items() if path.exists()}
    reason = str(result.stop_reason)
    rows = [("Final metrics", show_metrics({k: v for k, v in result.metrics.items() if "/" in k}))]
    if result.best is not None:
        best = {k: v for k, v in result.best.items() if k.startswith("val/")}
        rows.append(("Best epoch", f"{result.best.get('epoch')}: {show_metrics(best)}".rstrip(": ")))
    rows += [("Run directory", str(run_dir)), ("Best weights", str(files["best_weights"]))]
    rows += [("Metrics", str(files["metrics"]))]
    if "curves" in files:
        rows.append(("Curves", str(files["curves"])))
    if "tensorboard" in files:
        rows.append(("TensorBoard", f"tensorboard --logdir {files['tensorboard']}"))
    rows.append(("Next", f"velodrome eval {run_dir}    velodrome predict {run_dir}"))
    lines = f"\n{reason}\n{table(rows)}"
    if screen.quiet and not screen.as_json:
        return
    screen.answer(
        lines,
        {
            "stop_reason": None if result.stop_reason is None else result.stop_reason.name.lower(),
            "metrics": result.metrics,
            "best": result.best,
            "files": {key: str(path) for key, path in files.items()},
        },
    )


def _describe_model(ready: Ready) -> str:
    num = sum(p.numel() for p in ready.model.parameters())
    sizes = ready.recipe.model.arguments.get("sizes")
    shape = f" {'-'.join(str(size) for size in sizes)}" if isinstance(sizes, list) else ""
    return f"Model: {ready.recipe.model.name}{shape}, {num:,} parameters"


def _num_batches(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None  # an iterable that does not know its length


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"
