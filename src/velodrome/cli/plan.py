"""`velodrome train --dry-run`: what a run would do, after everything that it does was done once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from velodrome.cli.running import describe_model
from velodrome.cli.screen import Screen, show_metrics, table, write_quietly

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.recipes.build import Ready, Trial


def show_plan(ready: Ready, trial: Trial | None, run_dir: Path, screen: Screen) -> None:
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
        ("Model", describe_model(ready).removeprefix("Model: ")),
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


def _num_batches(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None  # an iterable that does not know its length


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def _default(value: float | None) -> str:
    return "of its own" if value is None else f"{value:g}"
