"""`velodrome train`: a recipe becomes a run; `velodrome resume`: a run goes on."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

import os
import shlex
import sys
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
    RecipeOption,
    StopAfter,
    Verbose,
)
from velodrome.cli.processes import is_main, main_first, run_verb
from velodrome.cli.run_names import choose_run_dir, find_run_dir, num_processes_of
from velodrome.cli.saved import SavedWeights, find_saved_weights
from velodrome.cli.screen import Screen, show_metrics, table, write_quietly
from velodrome.cli.stopping import fit

if TYPE_CHECKING:
    from velodrome.loop.result import FitResult
    from velodrome.recipes.build import Ready, Trial


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
            *(["--stop-after", stop_after] if stop_after else []),
            *(["--profile-steps", profile_steps] if profile_steps else []),
        ]
        watching = (("--profile", profile), ("--find-syncs", find_syncs))
        switches = [
            flag for flag, on in (*watching, ("--json", json), ("--quiet", quiet), ("--verbose", verbose)) if on
        ]
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
        _show_plan(ready, trial, run_dir, screen)
        return
    del trial
    # In several processes all ask for the same, and rank 0 finds out whether there is a run.
    how = "never" if resume == "never" or (found is None and "RANK" not in os.environ) else "auto"
    limits: dict[str, Any] = {"stop_after": stop_after} if stop_after else {}
    limits |= {"profile": profile_steps or True} if profile or profile_steps else {}
    limits |= {"find_syncs": True} if find_syncs else {}
    _run(ready, run_dir, recipe, screen, changed=bool(overrides), speaks=speaks, resume=how, **limits)


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
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run exactly where its newest checkpoint was made.

    Example: velodrome resume runs/my-run train.epochs=20
    """
    from velodrome.recipes.build import build
    from velodrome.recipes.loading import load_recipe_for

    speaks = is_main()
    screen = Screen(as_json=json and speaks, quiet=quiet or not speaks)
    run_dir = find_run_dir(str(run), run, None, "")
    assert run_dir is not None  # a path that holds no run was refused
    if processes is None and "RANK" not in os.environ:
        processes = num_processes_of(run_dir)
    if processes is not None and processes > 1:
        options = [*(["--recipe", recipe] if recipe else []), *(["--device", device] if device else [])]
        given = (("--accept-changes", accept_changes), ("--json", json), ("--quiet", quiet), ("--verbose", verbose))
        switches = [flag for flag, on in given if on]
        run_verb(["resume", str(run), *(overrides or []), *options, *switches], processes=processes)
        return
    changes = [*(overrides or []), *([f"train.device={device}"] if device else [])]
    if quiet:
        changes.append("logging.progress=false")
    loaded = load_recipe_for(run_dir, recipe, changes)
    ready = main_first(loaded.recipe.train.device, lambda: build(loaded, say=screen.say_data, first_weights=False))
    name = str(_shortened(run_dir.absolute()) / "recipe.toml") if recipe is None else recipe
    limits = {"stop_after": stop_after} if stop_after else {}
    how = {"resume": str(run), "accept_changes": accept_changes, **limits}
    _run(ready, run_dir, name, screen, changed=bool(overrides), speaks=speaks, **how)


def _run(
    ready: Ready, run_dir: Path, recipe: str, screen: Screen, *, changed: bool, speaks: bool = True, **arguments: Any
) -> None:
    """Train, and say how it ended; a process that does not speak only trains."""
    from velodrome.loop.progress import StopReason

    trainer = ready.make_trainer(run_dir=run_dir, **arguments)
    screen.say(_describe_model(ready))
    screen.say(f"Device: {trainer.device}")
    screen.say(f"Run: {run_dir}")
    next_recipe = _next_recipe(ready, recipe, run_dir, changed=changed)
    result = fit(trainer, ready.train, ready.val, _shortened(run_dir), next_recipe, **ready.fit_arguments)
    if not speaks:
        return
    best = result.best if ready.recipe.checkpoint.keep_best else None
    weights = find_saved_weights(
        _shortened(run_dir), last_step=trainer.progress.steps_done, best_step=None if best is None else best.get("step")
    )
    _finish(result, weights, next_recipe, screen)
    problems = [*weights.problems]
    if result.stop_reason is StopReason.NOT_SAVED:
        where = shlex.quote(str(_shortened(run_dir)))
        resume = f"go on with: velodrome resume {where}{next_recipe}"
        problems.append(
            f"The run stopped before its end, because its saves failed. Free room on the disk of {where}, then "
            f"{'train anew with the same command: there is no checkpoint' if weights.last is None else resume}"
        )
    for problem in problems:
        write_quietly(f"Error: {problem}", sys.stderr)
    if problems:
        raise typer.Exit(1)


def _explain(ready: Ready) -> str:
    """Return the calls of a run; the folder that a trainer makes for it is made elsewhere and goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        return ready.make_trainer(run_dir=Path(folder) / "run").explain()


def _show_plan(ready: Ready, trial: Trial | None, run_dir: Path, screen: Screen) -> None:
    """Say what a run would do, after everything that it does was done once.

    Raises:
        typer.Exit: with code 1, when its checkpoints would not fit on the disk.
    """
    from velodrome.cli.preflight import preflight_rows
    from velodrome.devices import resolve_device
    from velodrome.recipes.preflight import preflight

    device = str(resolve_device(ready.recipe.train.device))
    batches, accumulate = _num_batches(ready.train), ready.trainer_arguments.get("accumulate", 1)
    steps = None if batches is None else -(-batches // accumulate)  # a last window that is short is a step too
    budget = {key: value for key, value in ready.fit_arguments.items() if value is not None}
    epochs = budget.get("epochs")
    total = steps * epochs if steps is not None and epochs is not None else budget.get("steps")
    plan: dict[str, Any] = {
        "recipe": ready.name,
        "data": ready.data.origin,
        "num_parameters": sum(p.numel() for p in ready.model.parameters()),
        "device": device,
        "budget": budget,
        "steps_per_epoch": steps,
        "total_steps": total,
        "evaluation_batches": None if ready.val is None else _num_batches(ready.val),
        "first_step": None if trial is None else trial.train,
        "first_evaluation": None if trial is None else trial.val,
        "tables": ready.recipe.to_tables(),
    }
    found = None
    if trial is not None:
        known = epochs if epochs is not None or not steps or total is None else total / steps
        found = preflight(
            ready, trial, run_dir, steps=total, epochs=known, evaluation_batches=plan["evaluation_batches"]
        )
        plan |= {
            "checkpoint_bytes": found.room.checkpoint_bytes,
            "checkpoints_kept": found.room.kept,
            "needed_bytes": found.room.needed,
            "free_bytes": found.room.free,
            "not_resumable": found.not_resumable or None,
            "step_s": found.step_s,
            "save_s": found.save_s,
            "seconds": found.seconds,
        }
    length = ", ".join(f"{value:g} {key}" for key, value in budget.items())
    rows = [
        ("Model", _describe_model(ready).removeprefix("Model: ")),
        ("Device", device),
        ("Optimizer", f"{ready.recipe.optimizer.name}, lr {_default(ready.recipe.optimizer.lr)}"),
        ("Loss", ready.recipe.loss.name),
        ("Length", f"{length}; {_count(steps)} steps an epoch, {_count(total)} in all"),
        ("Evaluation", f"{_count(plan['evaluation_batches'])} batches after every epoch"),
    ]
    if trial is None:
        rows.append(("First step", "not tried: the data can be read only once"))
    else:
        rows.append(("First step", show_metrics(trial.train)))
        rows.append(("First evaluation batch", show_metrics(trial.val) or "none"))
    rows += [] if found is None else preflight_rows(found)
    screen.answer(f"{table(rows)}\nDry run: nothing was trained or written.", {"plan": plan})
    if found is not None and found.room.problem:
        write_quietly(f"Error: {found.room.problem}", sys.stderr)
        raise typer.Exit(1)


def _next_recipe(ready: Ready, recipe: str, run_dir: Path, *, changed: bool) -> str:
    """Return the option that the next verb needs: a run's own recipe is not trusted to name the user's code."""
    from velodrome.recipes.registry import is_user_code

    names = [*(table.name for table in ready.recipe.named_tables().values()), *ready.recipe.train.metrics]
    if not any(map(is_user_code, names)):
        return ""
    # With changes on the command line only the saved recipe says what was trained.
    return f" --recipe {shlex.quote(str(_shortened(run_dir) / 'recipe.toml') if changed else recipe)}"


def _finish(result: FitResult, weights: SavedWeights, next_recipe: str, screen: Screen) -> None:
    """Say how it ended and where everything is."""
    from velodrome.run.files import WORTH_SAYING_S

    assert result.run_dir is not None  # the verb always gives one
    run_dir = _shortened(result.run_dir)
    files: dict[str, Path] = {"run_dir": run_dir, "metrics": run_dir / "metrics.jsonl"}
    if weights.best is not None:
        files["best_weights"] = weights.best
    if weights.last is not None:
        files["last_weights"] = weights.last
    optional = {"curves": run_dir / "curves.png", "tensorboard": run_dir / "tb"}
    files |= {key: path for key, path in optional.items() if path.exists()}
    reason = str(result.stop_reason)
    rows = [("Final metrics", show_metrics({k: v for k, v in result.metrics.items() if "/" in k}))]
    if result.best is not None:
        best = {k: v for k, v in result.best.items() if k.startswith("val/")}
        rows.append(("Best epoch", f"{result.best.get('epoch')}: {show_metrics(best)}".rstrip(": ")))
    if result.bill.batches and result.bill.wall_s < WORTH_SAYING_S:  # of longer runs it was said when they ended
        rows.append(("Time", result.bill.line().removeprefix("Time ")))
        rows += [("Speed", line) for line in result.findings]
    if (run_dir / "profile").is_dir():
        rows.append(("Trace", str(run_dir / "profile")))
    rows.append(("Run directory", str(run_dir)))
    if weights.best is not None:
        rows.append(("Best weights", str(weights.best)))
    elif weights.last is not None:
        rows.append(("Saved weights" if weights.problems else "Last weights", str(weights.last)))
    rows.append(("Metrics", str(files["metrics"])))
    if "curves" in files:
        rows.append(("Curves", str(files["curves"])))
    if "tensorboard" in files:
        rows.append(("TensorBoard", f"tensorboard --logdir {shlex.quote(str(files['tensorboard']))}"))
    if weights.last is not None:
        options = f"{shlex.quote(str(run_dir))}{next_recipe}{'' if weights.best is not None else ' --weights last'}"
        rows.append(("Next", f"velodrome eval {options}    velodrome predict {options}"))
    lines = f"\n{reason}\n{table(rows)}"
    if screen.quiet and not screen.as_json:
        return
    screen.answer(
        lines,
        {
            "stop_reason": None if result.stop_reason is None else result.stop_reason.name.lower(),
            "metrics": result.metrics,
            "best": result.best,
            "problems": list(weights.problems),
            "bill": result.bill.to_dict(),
            "findings": result.findings,
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


def _shortened(path: Path) -> Path:
    """Return the path from the current folder on, when it lies in there: what people can read and copy."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _default(value: float | None) -> str:
    return "of its own" if value is None else f"{value:g}"
