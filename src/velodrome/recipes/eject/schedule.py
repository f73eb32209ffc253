"""The learning-rate schedule of a recipe: one of torch's, or a named curve as a function of the update's number."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler

from velodrome.recipes import registry
from velodrome.recipes.eject.code import NO_PART, Part, call, keywords
from velodrome.recipes.eject.curves import CURVES, curve_part
from velodrome.recipes.eject.refuse import refusal
from velodrome.step.schedules.plateau import direction_of
from velodrome.step.schedules.spans import RunLength, read_interval
from velodrome.step.schedules.spec import Constant
from velodrome.step.schedules.torch_schedule import default_interval

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe, SchedulerTable

__all__ = ["Scheduling", "schedule_of"]


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How a script changes the learning rate; with nothing in it, not at all."""

    part: Part = NO_PART
    setup: str = ""
    """of main(), after the optimizer"""
    after_update: str = ""
    after_epoch: str = ""


def schedule_of(recipe: Recipe, run: RunLength, *, has_val: bool) -> Scheduling:
    """Return the lines of the schedule.

    Args:
        recipe: with or without `[scheduler]`.
        run: updates an epoch and budgets.
        has_val: whether an epoch has a "val/loss".
    Raises:
        RecipeError: a schedule that no plain lines are written for.
    """
    table = recipe.scheduler
    if table is None:
        return Scheduling()
    if registry.is_user_code(table.name):
        raise refusal("scheduler.name", table.name, "Only schedules by name are written as plain PyTorch.")
    name = table.name.lower()
    if name in CURVES:
        if table.interval is not None and str(read_interval(table.interval)) != "per update":
            raise refusal(
                "scheduler.interval", table.interval, "The curve is written out update by update: leave it out."
            )
        return Scheduling(
            part=curve_part(CURVES[name](**table.arguments), run),
            setup=call("scheduler = torch.optim.lr_scheduler.LambdaLR", ["optimizer", "learning_rate_factor"], level=1),
            after_update="scheduler.step()",
        )
    if name in ("plateau", "reducelronplateau"):
        return _plateau(table, has_val=has_val)
    kind = next((each for each in vars(lr_scheduler) if each.lower() == name and each != name), "")
    if not kind:
        raise refusal("scheduler.name", table.name, "Use a name that `scheduler=` of a Trainer knows.")
    return _of_torch(table, kind, run)


def _plateau(table: SchedulerTable, *, has_val: bool) -> Scheduling:
    arguments = dict(table.arguments)
    for name in inspect.signature(Constant).parameters:
        if name in arguments:
            raise refusal(f"scheduler.{name}", arguments[name], "A warm-up before a plateau is not written out.")
    if table.interval is not None and str(read_interval(table.interval)) != "per epoch":
        raise refusal("scheduler.interval", table.interval, "The value is looked at after every epoch: leave it out.")
    if table.name.lower() == "plateau":
        arguments.setdefault("mode", direction_of(table.monitor))
    monitor = table.monitor or ("val/loss" if has_val else "train/loss")
    return Scheduling(
        setup=_make("ReduceLROnPlateau", arguments),
        after_epoch=f'scheduler.step(row["{monitor}"])',
    )


def _of_torch(table: SchedulerTable, kind: str, run: RunLength) -> Scheduling:
    interval = (
        default_interval(getattr(lr_scheduler, kind)) if table.interval is None else read_interval(table.interval)
    )
    if interval.amount != 1:
        raise refusal("scheduler.interval", table.interval, 'Use "step" or "epoch".')
    is_per_update = interval.unit == "steps"
    arguments = dict(table.arguments)
    if kind == "OneCycleLR":
        total = run.total if is_per_update else run.total_epochs
        if arguments.setdefault("total_steps", total) != total or "epochs" in arguments:
            raise refusal("scheduler.total_steps", arguments["total_steps"], f"The run has {total}: leave it out.")
    return Scheduling(
        setup=_make(kind, arguments),
        after_update="scheduler.step()" if is_per_update else "",
        after_epoch="" if is_per_update else "scheduler.step()",
    )


def _make(kind: str, arguments: dict[str, Any]) -> str:
    return call(f"scheduler = torch.optim.lr_scheduler.{kind}", ["optimizer", *keywords(arguments)], level=1)
