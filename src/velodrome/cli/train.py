"""`velodrome train`: a recipe becomes a run."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

import os
import tempfile
from json import dumps as to_json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.options import (
    Device,
    FindSyncs,
    Json,
    Overrides,
    Processes,
    Profile,
    ProfileSteps,
    Quiet,
    StopAfter,
    Verbose,
)
from velodrome.cli.plan import show_plan
from velodrome.cli.processes import is_main, main_first, run_verb
from velodrome.cli.run_names import choose_run_dir, find_run_dir
from velodrome.cli.running import run_ready, watching_arguments, watching_options
from velodrome.cli.screen import Screen

if TYPE_CHECKING:
    from velodrome.recipes.build import Ready


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a .toml file.", metavar="RECIPE")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that holds runs.", metavar="DIR")] = Path("runs"),
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name; default: recipe, time and id.", metavar="NAME")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            help="auto: go on with the run that is there, if any; never; or a run.",
            metavar="auto|never|RUN",
        ),
    ] = "never",
    device: Device = None,
    processes: Processes = 1,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Start from these: a .safetensors file or a run.", metavar="FILE"),
    ] = None,
    stop_after: StopAfter = None,
    profile: Profile = False,
    profile_steps: ProfileSteps = None,
    find_syncs: FindSyncs = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Try everything once: step, evaluation batch, checkpoint; say what time and disk a run takes; leave nothing.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the calls of the run in order, with who owns each; write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model from a recipe.

    Example: velodrome train fashion-mnist-mlp optimizer.lr=0.01 train.epochs=20
    """
    from velodrome.recipes.build import build, try_out
    from velodrome.recipes.read import load_recipe

    watching: dict[str, Any] = {
        "stop_after": stop_after,
        "profile": profile,
        "profile_steps": profile_steps,
        "find_syncs": find_syncs,
    }
    speaks = is_main()
    screen = Screen(as_json=json and speaks, quiet=quiet or not speaks, answer_matters=dry_run or explain)
    if weights is not None:
        overrides = [*(overrides or []), f"train.weights={to_json_text(str(weights))}"]
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    if quiet:
        changes.append("logging.progress=false")
    loaded = load_recipe(recipe, changes)
    if processes > 1 and not dry_run and not explain:
        options = [
            "--out",
            str(out),
            "--resume",
            resume,
            *(["--name", name] if name else []),
            *(["--device", device] if device else []),
            *watching_options(**watching),
        ]
        switches = [flag for flag, on in (("--json", json), ("--quiet", quiet), ("--verbose", verbose)) if on]
        run_verb(["train", recipe, *(overrides or []), *options, *switches], processes=processes)
        return
    # One process writes; for the others only whether anything is written matters.
    found = find_run_dir(resume, out, name, loaded.name) if speaks else None
    new = found is None and speaks
    run_dir = choose_run_dir(out, name, loaded.name) if new else found or out / loaded.name
    screen.say(f"Recipe: {loaded.name}")
    ready = main_first(
        loaded.recipe.train.device, lambda: build(loaded, say=screen.say_data, first_weights=found is None)
    )
    if explain:
        calls = _explain(ready)
        screen.answer(f"{calls}\nNothing was trained or written.", {"calls": calls.splitlines()})
        return
    trial = try_out(ready)  # what is refused is refused here, before there is a run directory
    if dry_run:
        ready.make_trainer(progress=False).check_lengths(ready.train, **ready.fit_arguments)
        show_plan(ready, trial, run_dir, screen)
        return
    del trial
    # In several processes all ask for the same, and rank 0 finds out whether there is a run.
    how = "never" if resume == "never" or (found is None and "RANK" not in os.environ) else "auto"
    limits = watching_arguments(**watching)
    run_ready(ready, run_dir, recipe, screen, changed=bool(overrides), speaks=speaks, resume=how, **limits)


def _explain(ready: Ready) -> str:
    """Return the calls of a run; the folder that a trainer makes for it is made elsewhere and goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        return ready.make_trainer(run_dir=Path(folder) / "run").explain()
