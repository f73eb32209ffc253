"""`velodrome verify RUN`: sizes, hashes and journal of a run or a checkpoint; `velodrome verify resume RECIPE`: the proof of resuming."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from velodrome.cli.next_recipe import option_of_run
from velodrome.cli.options import Device, Json, Overrides, Processes, Quiet, Verbose
from velodrome.cli.screen import Screen, table

if TYPE_CHECKING:
    from velodrome.recorded_runs.verification import CheckedCheckpoint, CheckedRun

WRONG = 3
_RUN = "RUN"  # how help shows the form without a name; nobody has to type it
_NAMED = "resume"


class _RunUnlessNamed(TyperGroup):
    """Takes every first word but "resume" as a path; a folder of that name is written ./resume."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: click's context, which typer carries along
        first = next((each for each in args if not each.startswith("-")), None)
        wants_help = not args or (first is None and bool({"-h", "--help"} & set(args)))
        if not wants_help and (first != _NAMED or _NAMED not in self.commands):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    help="Check a run or a checkpoint (verify RUN), or prove that a recipe resumes exactly (verify resume RECIPE).",
    rich_markup_mode=None,
)


@app.command(_RUN)
def verify(
    run: Annotated[Path, typer.Argument(help="A run directory or a checkpoint folder.", metavar="RUN")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check all files of a run or a checkpoint against their sizes and hashes.

    Leaves with 0 when all is well, and with 3 when something is wrong. Nothing is changed, and no code of the run's is imported.

    Example: velodrome verify runs/my-run
    """
    from velodrome.checkpoint.manifest import MANIFEST_NAME
    from velodrome.errors import RefusedError
    from velodrome.recorded_runs.verification import verify_checkpoint, verify_run

    screen = Screen(as_json=json, quiet=quiet)
    path = run.expanduser()
    if (path / MANIFEST_NAME).exists() or path.name.startswith("step-"):
        one = verify_checkpoint(path)
        answer = {"path": str(path), "kind": "checkpoint", "ok": not one.problems, **_checkpoint_facts(one)}
        lines, is_well = _describe_checkpoint(one), not one.problems
    elif (path / "run.json").exists() or (path / "checkpoints").is_dir():
        whole = verify_run(path)
        is_well = not whole.all_problems
        answer = {"path": str(path), "kind": "run", "ok": is_well, **_run_facts(whole), "next": _next(whole)}
        lines = _describe_run(whole)
    else:
        raise RefusedError(
            f"{path} is neither a run directory, which holds run.json, nor a checkpoint folder, which holds {MANIFEST_NAME}. "
            f"List the runs: velodrome runs",
            path=path,
        )
    screen.answer(lines, answer)
    if not is_well:
        raise typer.Exit(WRONG)


def _prove_resume(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a .toml file.", metavar="RECIPE")],
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates of each run.", metavar="N", min=2)] = None,
    processes: Processes = 1,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove that a recipe resumes exactly: train it straight, then killed and resumed, and compare everything.

    Example: velodrome verify resume my.toml
    """
    from velodrome.cli.verify_resume import verify_resume  # pyright: ignore[reportMissingImports]

    code = verify_resume(
        recipe, overrides or [], steps=steps, processes=processes, device=device, json=json, quiet=quiet
    )
    raise typer.Exit(code)


if find_spec("velodrome.cli.verify_resume") is not None:
    app.command(_NAMED)(_prove_resume)


def _checkpoint_facts(one: CheckedCheckpoint) -> dict[str, Any]:
    return {
        "checkpoint": str(one.path),
        "step": one.step,
        "files": one.num_files,
        "bytes": one.num_bytes,
        "resumable": one.is_resumable,
        "problems": list(one.problems),
    }


def _run_facts(run: CheckedRun) -> dict[str, Any]:
    return {
        "status": run.status,
        "under_way": None if run.holder is None else str(run.holder),
        "checkpoints": [_checkpoint_facts(each) for each in run.checkpoints],
        "best_step": run.best_step,
        "journal": {"rows": run.num_rows, "last_step": run.last_row_step},
        "resume_from": None if run.resume_from is None else str(run.resume_from),
        "problems": run.all_problems,
        "notes": list(run.notes),
    }


def _describe_checkpoint(one: CheckedCheckpoint) -> str:
    if one.problems:
        return "\n".join([f"{one.path}: {len(one.problems)} problems", *(f"  {each}" for each in one.problems)])
    use = "a run can go on from it" if one.is_resumable else f"weights only: {one.why_not}"
    return f"{one.path}: step {one.step:,}, {one.num_files} files, {_size(one.num_bytes)}, all hashes agree; {use}."


def _describe_run(run: CheckedRun) -> str:
    rows = [("Run", str(run.path)), ("Status", run.status if run.holder is None else f"under way: {run.holder}")]
    for each in run.checkpoints:
        marks = ["best"] if each.step == run.best_step else []
        marks += [] if each.is_resumable or each.problems else [f"weights only: {each.why_not}"]
        state = "DAMAGED" if each.problems else f"{each.num_files} files, {_size(each.num_bytes)}, all hashes agree"
        rows.append((f"Step {each.step:,}", ", ".join([state, *marks])))
    if not run.checkpoints:
        rows.append(("Checkpoints", "none"))
    journal = f"{run.num_rows:,} rows" + ("" if run.last_row_step is None else f", up to step {run.last_row_step:,}")
    rows.append(("Journal", journal))
    if run.holder is None:
        anew = "refused" if run.is_refused else "begins anew"
        rows.append(("Resume", anew if run.resume_from is None else f"goes on from {run.resume_from.name}"))
    problems = run.all_problems
    lines = [table(rows), *(f"Problem: {each}" for each in problems), *(f"Note: {each}" for each in run.notes)]
    lines.append(
        "All is well." if not problems else f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}."
    )
    return "\n".join([*lines, *([f"Next: {_next(run)}"] if _next(run) else [])])


def _next(run: CheckedRun) -> str:
    """Return the command that makes sense now."""
    if run.holder is not None or not run.record or not (run.path / "recipe.toml").is_file():
        return ""  # without a recipe it was begun in Python, and goes on there
    path = f"{shlex.quote(str(run.path))}{option_of_run(run.path)}"
    if run.status == "done":
        whole = {each.step for each in run.checkpoints if not each.problems}
        return f"velodrome eval {path}{'' if run.best_step in whole else ' --weights last'}" if whole else ""
    return f"velodrome resume {path}" if run.resume_from is not None else ""


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
