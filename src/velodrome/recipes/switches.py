"""From a recipe's training switches to the Trainer's arguments: only what the recipe gives is passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.recipes import registry

if TYPE_CHECKING:
    from velodrome.recipes.schema import EarlyStoppingTable, EMATable, Recipe

# Fields of [train] that are arguments of the Trainer by the same name.
_OF_TRAIN = (
    "precision", "accumulate", "clip_norm", "clip_value", "compile", "engine", "channels_last", "freeze", "gradient_checkpointing", "grad_norms",
    "on_oom",
    "on_nonfinite",
    "stop_after",
)  # fmt: skip
# What makes sense for a whole run only, not for one step that is tried out.
WHOLE_RUN = frozenset(
    {"scheduler", "scheduler_args", "scheduler_every", "scheduler_monitor", "ema", "compile", "engine", "stop_after"}
)


def training_switches(recipe: Recipe) -> dict[str, Any]:  # Any: what a Trainer takes
    """Return the Trainer's arguments for everything that a recipe switches on; a recipe that says nothing gives none.

    `micro_batch` becomes `accumulate`: the loader gives micro-batches, and as many make an update as fill `batch_size`.
    """
    train = recipe.train
    found = {name: getattr(train, name) for name in _OF_TRAIN if getattr(train, name) is not None}
    if train.micro_batch is not None:
        found["accumulate"] = train.batch_size // train.micro_batch  # the schema has seen to it that it divides
    if recipe.optimizer.groups is not None:
        found["parameter_groups"] = {pattern: dict(options) for pattern, options in recipe.optimizer.groups.items()}
    scheduler = recipe.scheduler
    if scheduler is not None:
        own = registry.is_user_code(scheduler.name)
        found["scheduler"] = registry.import_callable(scheduler.name) if own else scheduler.name
        if scheduler.arguments:
            found["scheduler_args"] = scheduler.arguments
        if scheduler.interval is not None:
            found["scheduler_every"] = scheduler.interval
        if scheduler.monitor is not None:
            found["scheduler_monitor"] = scheduler.monitor
    if recipe.ema is not None:
        found["ema"] = make_average(recipe.ema)
    return found


def loader_switches(recipe: Recipe) -> dict[str, Any]:  # Any: what a DataLoader takes
    """Return the loader's arguments for where data lie, as far as the recipe gives them."""
    import torch

    train, found = recipe.train, {}
    if train.resident is not None:
        found["resident"] = train.resident
    if train.pin_memory is not None:  # torch warns where there is nothing to pin for
        found["pin_memory"] = train.pin_memory and torch.accelerator.is_available()
    return found


def watched(recipe: Recipe) -> dict[str, Any]:
    """Return the Trainer's arguments for batches that are looked at closely."""
    names = ("profile", "find_syncs")
    return {name: getattr(recipe.logging, name) for name in names if getattr(recipe.logging, name) is not None}


def early_stopping(recipe: Recipe) -> list[Any]:  # Any: an EarlyStopping, imported only when it is asked for
    """Return the callback that `[early_stopping]` asks for, or none."""
    return [] if recipe.early_stopping is None else [make_early_stopping(recipe.early_stopping)]


def make_early_stopping(table: EarlyStoppingTable) -> Any:  # Any: as above
    """Build the callback; fields that are left out have its own defaults.

    Raises:
        ArgumentError: the monitored name does not say what better means.
    """
    return registry.import_callable(registry.EARLY_STOPPING)(**table.model_dump(exclude_none=True))


def make_average(table: EMATable) -> Any:  # Any: an EMA or SWA, imported only when it is asked for
    """Build the average of the weights; fields that are left out have its own defaults.

    Raises:
        ArgumentError: a duration cannot be read, or is in the wrong unit.
    """
    arguments = table.model_dump(exclude_none=True, exclude={"kind"})
    return registry.import_callable(registry.BUILTIN_AVERAGES[table.kind])(**arguments)
