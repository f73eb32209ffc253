"""`velodrome replay`: one step of a run once more, to see which module made a number that is not finite."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Device, Json, Quiet, RecipeOption, Verbose
from velodrome.cli.screen import Screen


def replay(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    step: Annotated[int, typer.Argument(help="The step, counted from 1, as the error says it.", metavar="STEP", min=1)],
    recipe: RecipeOption = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a step of a run again with every module watched; nothing of the run is changed.

    First from what was kept when a loss or gradient was not finite; where that does not show it again, or nothing was kept, from the
    newest checkpoint before the step, exactly as the run went.

    Example: velodrome replay runs/my-run 1200
    """
    from velodrome.errors import ArgumentError, CheckpointError
    from velodrome.nonfinite.bundle import FOLDER, bundle_name, read_bundle
    from velodrome.nonfinite.replaying import find_start, replay_bundle, replay_run
    from velodrome.recipes.build import build
    from velodrome.recipes.trained_model import load_recipe_for

    screen = Screen(as_json=json, quiet=quiet)
    if not (run / "run.json").is_file():
        raise ArgumentError(
            f"{run} is no run directory: it holds no run.json. Give the folder that velodrome train wrote."
        )
    changes = [f"train.device={device}"] if device else []
    loaded = load_recipe_for(run, recipe, changes)
    ready = build(loaded, say=screen.say_data)
    folder = run / FOLDER / bundle_name(step)
    found = None
    if folder.is_dir():
        bundle = read_bundle(folder)
        if bundle.batch is not None and bundle.weights:
            found = replay_bundle(ready.make_trainer(progress=False, compile=False), bundle)
    start = find_start(run, step)
    if start is not None and (found is None or found.fault is None):
        if found is not None:
            screen.say(
                "The batch that was kept is finite now: random layers may draw other numbers. Going on from a checkpoint."
            )
            ready = build(loaded, say=lambda line: None)
        screen.say(f"Going on from {start}, to step {step}.")
        trainer = ready.make_trainer(progress=False, compile=False)
        found = replay_run(trainer, ready.train, ready.val, step=step, start=start, **ready.fit_arguments)
    if found is None:
        raise CheckpointError(
            f"{run} holds no checkpoint before step {step} that a run can go on from, and nothing was kept of that step. Train again with "
            f'checkpoint.every="100 steps", say.'
        )
    screen.answer(str(found), {"replay": found.as_json()})
