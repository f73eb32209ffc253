"""`velodrome resume`: a run goes on."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from velodrome.cli.options import (
    Device,
    FindSyncs,
    Json,
    Overrides,
    Profile,
    ProfileSteps,
    Quiet,
    RecipeOption,
    StopAfter,
    Verbose,
)
from velodrome.cli.processes import is_main, main_first, run_verb
from velodrome.cli.run_names import find_run_dir, num_processes_of
from velodrome.cli.running import run_ready, shortened, watching_arguments, watching_options
from velodrome.cli.screen import Screen


def resume(
    run: Annotated[Path, typer.Argument(help="A run directory, or a checkpoint folder in one.", metavar="RUN")],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although settings are not those of the run.")
    ] = False,
    device: Device = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", help="Processes to train with; as many as before when left out.", metavar="N", min=1
        ),
    ] = None,
    stop_after: StopAfter = None,
    profile: Profile = False,
    profile_steps: ProfileSteps = None,
    find_syncs: FindSyncs = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run exactly where its newest checkpoint was made.

    Example: velodrome resume runs/my-run train.epochs=20
    """
    from velodrome.recipes.build import build
    from velodrome.recipes.trained_model import load_recipe_for

    watching: dict[str, Any] = {
        "stop_after": stop_after,
        "profile": profile,
        "profile_steps": profile_steps,
        "find_syncs": find_syncs,
    }
    speaks = is_main()
    screen = Screen(as_json=json and speaks, quiet=quiet or not speaks)
    run_dir = find_run_dir(str(run), run, None, "")
    assert run_dir is not None  # a path that holds no run was refused
    if processes is None and "RANK" not in os.environ:
        processes = num_processes_of(run_dir)
    if processes is not None and processes > 1:
        options = [*(["--recipe", recipe] if recipe else []), *(["--device", device] if device else [])]
        options += watching_options(**watching)
        given = (("--accept-changes", accept_changes), ("--json", json), ("--quiet", quiet), ("--verbose", verbose))
        switches = [flag for flag, on in given if on]
        run_verb(["resume", str(run), *(overrides or []), *options, *switches], processes=processes)
        return
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    if quiet:
        changes.append("logging.progress=false")
    loaded = load_recipe_for(run_dir, recipe, changes)
    ready = main_first(loaded.recipe.train.device, lambda: build(loaded, say=screen.say_data, first_weights=False))
    name = str(shortened(run_dir.absolute()) / "recipe.toml") if recipe is None else recipe
    how = {"resume": str(run), "accept_changes": accept_changes, **watching_arguments(**watching)}
    run_ready(ready, run_dir, name, screen, changed=bool(overrides), speaks=speaks, **how)
