"""`velodrome runs`: which runs there are and what became of them; `velodrome show RUN`: one of them."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.next_recipe import option_of_run
from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen, columns, show_metrics, table

if TYPE_CHECKING:
    from velodrome.recorded_runs.overview import Overview


def runs(
    root: Annotated[Path, typer.Argument(help="The folder that holds runs.", metavar="DIR")] = Path("runs"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List runs, the newest first, with what became of them.

    Example: velodrome runs
    """
    from velodrome.recorded_runs.overview import find_runs

    screen = Screen(as_json=json)
    found = find_runs(root.expanduser())
    if not found:
        screen.answer(f"There is no run in {root}. Start one: velodrome train fashion-mnist-mlp", {"runs": []})
        return
    header = ("Run", "Status", "Recipe", "Epochs", "Steps", "Best", "Started")
    lines = [columns([header, *map(_row, found)])]
    lines += [f"{_clean(run.path.name)}: {_clean(problem)}" for run in found for problem in run.problems]
    killed = next((run for run in found if run.status == "killed"), None)
    if killed is not None:
        options = f"{shlex.quote(_clean(str(killed.path)))}{_clean(option_of_run(killed.path))}"
        lines.append(f"A run that was killed goes on with: velodrome resume {options}")
    screen.answer("\n".join(lines), {"runs": [_facts(run) for run in found]})


def show(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what a run is, where it was made, and how far it came.

    Example: velodrome show runs/my-run
    """
    from velodrome.errors import RefusedError
    from velodrome.monitor import is_metric
    from velodrome.recorded_runs.overview import look_at

    screen = Screen(as_json=json)
    path = run.expanduser()
    if not (path / "run.json").exists():
        raise RefusedError(f"{path} holds no run (no run.json). List the runs: velodrome runs", path=path)
    found = look_at(path)
    record = found.record
    metrics = {name: value for name, value in found.last_row.items() if is_metric(name)}
    versions, git = record.get("versions"), record.get("git")
    rows = [
        ("Run", str(found.path)),
        ("Status", found.status if found.holder is None else f"under way: {found.holder}"),
        ("Why", str(record.get("stop_reason") or "")),
        ("Error", str(record.get("error") or "")),
        ("Recipe", found.recipe),
        ("Command", shlex.join(map(str, record["command"])) if isinstance(record.get("command"), list) else ""),
        ("Done", _done(found)),
        ("Last metrics", show_metrics(metrics)),
        ("Best", "" if found.best is None else f"{found.monitor} {found.best:.4g}, step {found.best_step:,}"),
        ("Started", f"{found.started.isoformat(timespec='seconds')} ({_age(found.started)})"),
        ("Finished", str(record.get("finished") or "")),
        ("Host", str(record.get("host") or "")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("Git", f"{git.get('commit')}{', changed' if git.get('dirty') else ''}" if isinstance(git, dict) else ""),
    ]
    lines = [table([(name, _clean(text)) for name, text in rows if text])]
    lines += [f"Problem: {_clean(each)}" for each in found.problems]
    screen.answer("\n".join(lines), {**_facts(found), "record": dict(record), "last_row": dict(found.last_row)})


def _facts(run: Overview) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "status": run.status,
        "under_way": None if run.holder is None else str(run.holder),
        "recipe": run.recipe,
        "epochs_done": run.epochs_done,
        "steps_done": run.steps_done,
        "monitor": run.monitor or None,
        "best": run.best,
        "best_step": run.best_step,
        "started": run.started.isoformat(timespec="seconds"),
        "problems": list(run.problems),
    }


def _row(run: Overview) -> tuple[str, ...]:
    return tuple(
        map(
            _clean,
            (
                run.path.name,
                run.status,
                run.recipe,
                "" if run.epochs_done is None else f"{run.epochs_done:,}",
                "" if run.steps_done is None else f"{run.steps_done:,}",
                "" if run.best is None else f"{run.monitor} {run.best:.4g}",
                _age(run.started),
            ),
        )
    )


def _done(run: Overview) -> str:
    if run.steps_done is None:
        return ""
    epochs = "" if run.epochs_done is None else f"{run.epochs_done:,} epochs, "
    return f"{epochs}{run.steps_done:,} steps"


def _age(then: datetime) -> str:
    """Return `3 hours ago`; a clock that was set back makes no negative age."""
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    for amount, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= amount:
            number = int(seconds // amount)
            return f"{number:,} {unit}{'' if number == 1 else 's'} ago"
    return "just now"


def _clean(text: str) -> str:
    """Return the text without what would steer the terminal: a name may come from anybody."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
