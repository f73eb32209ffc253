"""What `train` and `resume` have in common: a trainer made, run to its end, and what is said then."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from velodrome.cli.next_recipe import recipe_option
from velodrome.cli.saved import SavedWeights, find_saved_weights
from velodrome.cli.screen import Screen, show_metrics, table, write_quietly
from velodrome.cli.stopping import fit

if TYPE_CHECKING:
    from velodrome.loop.result import FitResult
    from velodrome.recipes.build import Ready


def watching_arguments(
    *, stop_after: str | None, profile: bool, profile_steps: str | None, find_syncs: bool
) -> dict[str, Any]:
    """Return the trainer's arguments for the options that end or watch a run; those of the recipe hold where none was given."""
    arguments: dict[str, Any] = {"stop_after": stop_after} if stop_after else {}
    arguments |= {"profile": profile_steps or True} if profile or profile_steps is not None else {}
    return arguments | ({"find_syncs": True} if find_syncs else {})


def watching_options(
    *, stop_after: str | None, profile: bool, profile_steps: str | None, find_syncs: bool
) -> list[str]:
    """Return these options as they are written, for the processes of a run that has several."""
    values = (("--stop-after", stop_after), ("--profile-steps", profile_steps))
    switches = (("--profile", profile), ("--find-syncs", find_syncs))
    given = [part for name, value in values if value for part in (name, value)]
    return [*given, *(name for name, is_on in switches if is_on)]


def run_ready(
    ready: Ready, run_dir: Path, recipe: str, screen: Screen, *, changed: bool, speaks: bool = True, **arguments: Any
) -> None:
    """Train, and say how it ended; a process that does not speak only trains.

    Args:
        ready: what a recipe became.
        run_dir: of the run.
        recipe: as the next verb is to be given it.
        screen: where it is said.
        changed: the recipe was changed on the command line.
        speaks: whether this process does.
        arguments: more of the trainer's.
    Raises:
        typer.Exit: with code 1, when saves failed.
    """
    from velodrome.loop.progress import StopReason

    trainer = ready.make_trainer(run_dir=run_dir, **arguments)
    screen.say(describe_model(ready))
    screen.say(f"Device: {trainer.device}")
    screen.say(f"Run: {run_dir}")
    # With changes on the command line only the saved recipe says what was trained.
    next_recipe = recipe_option(ready.recipe, shortened(run_dir) / "recipe.toml" if changed else recipe)
    result = fit(trainer, ready.train, ready.val, shortened(run_dir), next_recipe, **ready.fit_arguments)
    if not speaks:
        return
    best = result.best if ready.recipe.checkpoint.keep_best else None
    weights = find_saved_weights(
        shortened(run_dir), last_step=trainer.progress.steps_done, best_step=None if best is None else best.get("step")
    )
    _finish(result, weights, next_recipe, screen)
    problems = [*weights.problems]
    if result.stop_reason is StopReason.NOT_SAVED:
        where = shlex.quote(str(shortened(run_dir)))
        resume = f"go on with: velodrome resume {where}{next_recipe}"
        problems.append(
            f"The run stopped before its end, because its saves failed. Free room on the disk of {where}, then "
            f"{'train anew with the same command: there is no checkpoint' if weights.last is None else resume}"
        )
    for problem in problems:
        write_quietly(f"Error: {problem}", sys.stderr)
    if problems:
        raise typer.Exit(1)


def _finish(result: FitResult, weights: SavedWeights, next_recipe: str, screen: Screen) -> None:
    """Say how it ended and where everything is."""
    from velodrome.monitor import is_metric
    from velodrome.run.files import WORTH_SAYING_S

    assert result.run_dir is not None  # the verb always gives one
    run_dir = shortened(result.run_dir)
    files: dict[str, Path] = {"run_dir": run_dir, "metrics": run_dir / "metrics.jsonl"}
    if weights.best is not None:
        files["best_weights"] = weights.best
    if weights.last is not None:
        files["last_weights"] = weights.last
    optional = {"curves": run_dir / "curves.png", "report": run_dir / "report.html", "tensorboard": run_dir / "tb"}
    files |= {key: path for key, path in optional.items() if path.exists()}
    reason = str(result.stop_reason)
    rows = [("Final metrics", show_metrics({k: v for k, v in result.metrics.items() if is_metric(k)}))]
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
    if "report" in files:
        rows.append(("Report", str(files["report"])))
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


def describe_model(ready: Ready) -> str:
    """Return the model's name, sizes and number of parameters."""
    num = sum(p.numel() for p in ready.model.parameters())
    sizes = ready.recipe.model.arguments.get("sizes")
    shape = f" {'-'.join(str(size) for size in sizes)}" if isinstance(sizes, list) else ""
    return f"Model: {ready.recipe.model.name}{shape}, {num:,} parameters"


def shortened(path: Path) -> Path:
    """Return the path from the current folder on, when it lies in there: what people can read and copy."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
