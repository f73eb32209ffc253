"""A run directory as the facts of a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from velodrome.checkpoint.read import read_state
from velodrome.checkpoint.scan import find_checkpoints
from velodrome.errors import CheckpointError, RefusedError
from velodrome.monitor import find_direction, is_metric
from velodrome.record.reading import find_links
from velodrome.recorded_runs.overview import Overview, holds_a_run, look_at
from velodrome.recorded_runs.reading import read_events, read_journal, read_log, read_recipe
from velodrome.recorded_runs.resumptions import find_goings_on, read_pace
from velodrome.report.facts import RunFacts, SavedState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = ["read_facts"]

_SURROUNDINGS = ("command", "versions", "git", "host", "device", "processes", "seed", "budget")


def read_facts(folder: Path) -> RunFacts:
    """Return what the files of a run tell; what is damaged, a link, or a missing `run.json` or row of an epoch is among its problems.

    Raises:
        RefusedError: the folder holds no run.
    Cost: see `read_journal`; no weights are read.
    """
    if not holds_a_run(folder):
        raise RefusedError(f"{folder} holds no run (no run.json). List the runs: velodrome runs", path=str(folder))
    links = sorted(find_links(folder))
    found = look_at(folder, links=links)
    problems = [*found.problems, *(f"{link.relative_to(folder)} is a link, and is not read." for link in links)]

    def own(name: str) -> Path:
        """Return the path of one of the files; a link may lead to a file that is not to be shown to whoever gets the page."""
        return folder / name if folder / name not in links else folder / ".is-a-link"

    rows = read_journal(own("metrics.jsonl"), problems)
    if found.epochs_done is not None and len(rows.epochs) < found.epochs_done:
        problems.append(f"metrics.jsonl has the rows of {len(rows.epochs):,} of {found.epochs_done:,} epochs.")
    recorded = read_events(own("events.jsonl"), problems)
    log, num_left_out = read_log(own("log.txt"), problems)
    recipe_text, recipe = read_recipe(own("recipe.toml"), problems)
    kinds = [event.get("event") for event in recorded]
    bills = [event for event in recorded if event.get("event") == "bill"]
    went_on = [event for event in recorded if event.get("event") == "went_on"]
    monitor = found.monitor or _asked_monitor(recipe)
    checkpoints = _read_checkpoints(folder / "checkpoints", found.best_step, links, problems)
    settings, data = _read_settings(folder / "checkpoints", checkpoints)
    names = {name for row in rows.epochs for name in row if is_metric(name)}
    return RunFacts(
        name=folder.absolute().name,
        status=found.status,
        recipe_name=found.recipe,
        holder="" if found.holder is None else str(found.holder),
        record=found.record,
        surroundings=_surroundings(found.record, went_on),
        epochs_done=found.epochs_done,
        steps_done=found.steps_done,
        epochs=rows.epochs,
        steps=rows.steps,
        num_step_rows=rows.num_steps,
        evaluations=rows.evaluations,
        best=_find_best(found, rows.epochs),
        monitor=monitor,
        directions=_directions(names, monitor, recipe),
        bill=bills[-1] if bills else {},
        bill_is_of_part_before=_ends_before(kinds),
        step_ms=read_pace(log),
        events=log,
        num_events_left_out=num_left_out,
        goings_on=find_goings_on(recorded, found.record),
        checkpoints=checkpoints,
        recipe=recipe,
        recipe_text=recipe_text,
        settings=settings,
        data=data,
        commands=_commands(folder, found, recipe),
        problems=tuple(problems),
    )


def _ends_before(kinds: Sequence[object]) -> bool:
    """Return whether the run went on after its last bill."""
    return next((kind == "went_on" for kind in reversed(kinds) if kind in ("bill", "went_on")), False)


def _surroundings(record: Mapping[str, Any], went_on: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return with what the newest part of the run was made; `run.json` has command, versions, code and host of the first one."""
    last = went_on[-1].get("now") if went_on else None
    now = last if isinstance(last, dict) else {}
    return {name: now.get(name, record.get(name)) for name in _SURROUNDINGS}


def _find_best(found: Overview, epochs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the best epoch: of `best.json`, which is written at once, or else of `run.json`."""
    best: Mapping[str, Any] = found.record.get("best") or {}
    step = found.best_step if found.best_step is not None else best.get("step")
    return next((row for row in epochs if step is not None and row.get("step") == step), best)


def _asked_monitor(recipe: Mapping[str, Any]) -> str:
    table = recipe.get("checkpoint")
    asked = table.get("monitor") if isinstance(table, dict) else None
    return asked if isinstance(asked, str) else "val/loss"


def _directions(names: Iterable[str], monitor: str, recipe: Mapping[str, Any]) -> dict[str, Literal["min", "max"]]:
    """Return what is better of each value whose name says so, and of the monitored one as the recipe says it."""
    found: dict[str, Literal["min", "max"]] = {}
    for name in names:
        if (direction := find_direction(name)) is not None:
            found[name] = direction
    table = recipe.get("checkpoint")
    mode = table.get("mode") if isinstance(table, dict) else None
    if mode == "min" or mode == "max":
        found[monitor] = mode
    return found


def _read_checkpoints(
    folder: Path, best_step: int | None, links: Collection[Path], problems: list[str]
) -> list[SavedState]:
    """Return what lies in the folder of checkpoints; one that is a link, or has one in it, is left out."""
    if folder in links:
        return []
    try:
        found = find_checkpoints(folder, leave_out={link if link.parent == folder else link.parent for link in links})
    except CheckpointError as error:
        problems.append(error.message)
        return []
    return [
        SavedState(
            name=each.path.name,
            step=each.step,
            num_bytes=0 if each.manifest is None else sum(file.num_bytes for file in each.manifest.files.values()),
            is_best=each.step == best_step and not each.set_aside,
            problem=each.problem,
        )
        for each in found
    ]


def _read_settings(folder: Path, checkpoints: Sequence[SavedState]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and data as the newest whole checkpoint tells them; nothing where none does."""
    newest = next((each for each in checkpoints if not each.problem), None)
    if newest is None:
        return {}, {}
    try:
        resume = read_state(folder / newest.name, verify=False).get("resume")
    except CheckpointError:  # `velodrome verify` says it
        return {}, {}
    resume = resume if isinstance(resume, dict) else {}
    ranks = resume.get("ranks")
    first = ranks[0] if isinstance(ranks, list) and ranks and isinstance(ranks[0], dict) else {}
    found = [each if isinstance(each, dict) else {} for each in (resume.get("settings"), first.get("data"))]
    return found[0], found[1]


def _commands(folder: Path, found: Overview, recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what can be done with the run; one that was begun in Python goes on there."""
    run = shlex.quote(_short(folder))
    checks = [("Check every file", f"velodrome verify {run}"), ("Draw this report anew", f"velodrome report {run}")]
    if not recipe:
        return checks
    file = shlex.quote(f"{_short(folder)}/recipe.toml")
    option = f" --recipe {file}" if _names_user_code(recipe) else ""
    more = " train.epochs=MORE" if found.status == "done" else ""
    going_on = [] if found.holder is not None else [("Go on", f"velodrome resume {run}{option}{more}")]
    return [
        *going_on,
        ("Evaluate", f"velodrome eval {run}{option}"),
        ("Predict", f"velodrome predict {run}{option}"),
        *checks,
        ("Run the same again", f"velodrome train {file}"),
        ("Prove that it resumes exactly", f"velodrome verify resume {file}"),
    ]


def _short(folder: Path) -> str:
    """Return the folder from the current one on when it lies in there, and else its name: a report holds no path of the machine."""
    path, here = folder.absolute(), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) and path != here else path.name


def _names_user_code(recipe: Mapping[str, Any]) -> bool:
    """Return whether a name in it is `package.module:callable`, which a run directory is not trusted to name."""
    names = [table.get("name") for table in recipe.values() if isinstance(table, dict)]
    train = recipe.get("train")
    metrics = train.get("metrics") if isinstance(train, dict) else None
    return any(
        ":" in name for name in [*names, *(metrics if isinstance(metrics, list) else [])] if isinstance(name, str)
    )
