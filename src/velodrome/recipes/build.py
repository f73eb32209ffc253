"""A checked recipe becomes ready objects: model, loaders, and the arguments of a Trainer.

The loop below never sees a recipe; it gets what stands in `Ready`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError
from velodrome.recipes import registry
from velodrome.recipes.calls import call_named, refuse_untrusted
from velodrome.recipes.loaded_data import LoadedData, is_indexed, load_data, read_into_memory
from velodrome.recipes.loaders import evaluation_loader, training_loader
from velodrome.recipes.schema import DURATIONS, NEVER, Recipe
from velodrome.recipes.sizes import resolve_sizes
from velodrome.recipes.switches import WHOLE_RUN, early_stopping, training_switches, watched
from velodrome.recipes.task_check import check_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from velodrome.callbacks.base import Callback
    from velodrome.data.loader import DataLoader
    from velodrome.recipes.read import LoadedRecipe
    from velodrome.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Everything that a recipe describes, built and not yet trained."""

    name: str  # of the recipe
    recipe: Recipe  # resolved: "auto" sizes are numbers, so that it can be run without the data
    data: LoadedData
    model: nn.Module
    train: DataLoader | Any  # Any: a user's own iterable of batches
    val: DataLoader | Any
    trainer_arguments: dict[str, Any]
    fit_arguments: dict[str, Any]
    callbacks: Sequence[Callback] = ()  # those that the recipe asks for

    def make_trainer(
        self, *, run_dir: Path | None = None, callbacks: Sequence[Callback] = (), **changes: Any
    ) -> Trainer:
        """Return a Trainer for this recipe; with a run directory it saves the recipe there.

        Args:
            run_dir: where the run writes; None writes nothing.
            callbacks: run after those of the recipe.
            changes: Trainer arguments that take the place of the recipe's.
        """
        from velodrome.recipes.callbacks import SaveRecipe
        from velodrome.trainer import Trainer

        own: list[Callback] = []
        arguments = {**self.trainer_arguments, **changes}
        if run_dir is None:
            arguments |= {"checkpoint": None, "loggers": ()}
            arguments.pop("profile", None)
        else:
            own.append(SaveRecipe(self))
        return Trainer(self.model, run_dir=run_dir, callbacks=[*own, *self.callbacks, *callbacks], **arguments)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one step and one evaluation batch on a copy gave."""

    trainer: Trainer
    train: Mapping[str, float]
    val: Mapping[str, float]
    val_batch: Any = None  # the evaluation batch that was tried


def try_out(ready: Ready) -> Trial | None:
    """Train one step and evaluate one batch on a copy of the model, in memory: nothing is changed or written.

    Everything that the loop refuses (labels out of range, NaN, shapes that do not fit) is refused here, before there
    is a run directory. Loaders are made anew, so that the run's own ones stay at their first epoch. What is about a whole
    run is left out: schedule, average of weights, early stopping, and compilation, which would be paid twice.

    Returns:
        None when the data are the user's own iterable: trying it would use it up.
    Cost: a second copy of the model, one step, and one look at all data in memory.
    """
    if not is_indexed(ready.data.train):
        return None
    arguments = {key: value for key, value in ready.trainer_arguments.items() if key not in WHOLE_RUN}
    once = replace(ready, model=copy.deepcopy(ready.model), trainer_arguments=arguments, callbacks=())
    trainer = once.make_trainer(progress=False)
    result = trainer.fit(training_loader(ready.data, ready.recipe), steps=1)
    val: dict[str, float] = {}
    batch = None
    if ready.data.val is not None and is_indexed(ready.data.val):
        loader = evaluation_loader(ready.data, ready.recipe)
        batch = next(iter(loader))
        val = trainer.evaluate([batch])
    train = {key.removeprefix("train/"): v for key, v in result.metrics.items() if key.startswith("train/")}
    return Trial(trainer=trainer, train=train, val=val, val_batch=batch)


def build(
    loaded: LoadedRecipe,
    *,
    data: LoadedData | None = None,
    say: Callable[[str], Any] = print,
    first_weights: bool = True,
) -> Ready:
    """Load the data and build the model; the seed decides the initial weights.

    Args:
        loaded: a checked recipe.
        data: takes the place of what `[data]` names.
        say: gets lines for people, such as where the data came from.
        first_weights: load those of `train.weights`; not needed by whoever loads trained ones.
    Raises:
        CheckpointError: the weights to start from are missing or do not fit.
        RecipeError: the model or data callable refuses its arguments, or gives something that is neither.
        DataError: the data cannot be loaded.
    """
    from velodrome.checkpoint.read import load_weights_into
    from velodrome.data.threads import set_threads
    from velodrome.seeding import seed_everything

    for table in loaded.recipe.named_tables():
        refuse_untrusted(f"{table}.name", getattr(loaded.recipe, table).name, trusted=loaded.trusted)
    for metric in loaded.recipe.train.metrics:
        refuse_untrusted("train.metrics", metric, trusted=loaded.trusted)
    if loaded.recipe.train.threads is not None:
        set_threads(loaded.recipe.train.threads)
    data = load_data(loaded.recipe, say=say) if data is None else data
    if loaded.recipe.train.in_memory:
        data = read_into_memory(data, loaded.recipe, say=say)
    check_task(loaded.recipe, data)
    recipe = resolve_sizes(loaded.recipe, data.train, num_classes=len(data.class_names))
    seed_everything(recipe.train.seed)
    model = build_model(recipe, trusted=loaded.trusted)
    if recipe.train.weights is not None and first_weights:
        load_weights_into(model, Path(recipe.train.weights).expanduser())
    if recipe.train.micro_batch is not None and not is_indexed(data.train):
        raise RecipeError(
            f'train.micro_batch={recipe.train.micro_batch} cuts tensors and datasets into batches, and data.name="{recipe.data.name}" '
            f"gives a {type(data.train).__name__} of batches as they are. Use train.accumulate, the number of them an update.",
            problems=(),
        )
    return Ready(
        name=loaded.name,
        recipe=recipe,
        data=data,
        model=model,
        train=training_loader(data, recipe),
        val=None if data.val is None else evaluation_loader(data, recipe),
        trainer_arguments=_trainer_arguments(recipe),
        fit_arguments={name: getattr(recipe.train, name) for name in DURATIONS},
        callbacks=early_stopping(recipe),
    )


def build_model(recipe: Recipe, *, trusted: bool = True) -> nn.Module:
    """Build the model that `[model]` names; the caller has seeded.

    Args:
        recipe: with sizes resolved.
        trusted: False refuses a "package.module:callable".
    """
    from torch import nn

    name = recipe.model.name
    refuse_untrusted("model.name", name, trusted=trusted)
    model = call_named(registry.resolve_model(name), recipe.model.arguments, field="model.name", name=name)
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f'model.name="{name}" returned a {type(model).__name__}. It must return a torch.nn.Module.', problems=()
        )
    return model


def _trainer_arguments(recipe: Recipe) -> dict[str, Any]:
    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.record.sinks import has_tensorboard

    optimizer: Any = recipe.optimizer.name
    if registry.is_user_code(optimizer):
        optimizer = registry.import_callable(optimizer)
    wanted = recipe.checkpoint
    checkpoint = Checkpointing(
        every=None if wanted.every == NEVER else wanted.every,
        keep_last=wanted.keep_last,
        keep_best=wanted.keep_best,
        mode=wanted.mode,
        keep_every=wanted.keep_every,
        background=wanted.background,
        max_failures=wanted.max_failures,
        monitor=Checkpointing.monitor if wanted.monitor is None else wanted.monitor,
    )
    loggers = ["csv"]
    if recipe.logging.tensorboard and has_tensorboard():
        loggers.append("tensorboard")
    if recipe.logging.curves:
        loggers.append("curves")
    if recipe.logging.report:
        loggers.append("report")
    return {
        "optimizer": optimizer,
        "lr": recipe.optimizer.lr,
        "optimizer_args": recipe.optimizer.arguments,
        "loss": _loss(recipe),
        "metrics": [_metric(name) for name in recipe.train.metrics],
        "device": recipe.train.device,
        "seed": recipe.train.seed,
        "checkpoint": checkpoint,
        "loggers": loggers,
        "log_every": recipe.logging.every,
        "progress": recipe.logging.progress,
        **watched(recipe),
        **training_switches(recipe),
    }


def _loss(recipe: Recipe) -> Any:  # Any: a Loss for a name, the user's own callable otherwise
    from velodrome.step.losses import resolve_loss

    name, arguments = recipe.loss.name, recipe.loss.arguments
    if not registry.is_user_code(name):
        return resolve_loss(name, arguments)
    function = registry.import_callable(name)
    if inspect.isclass(function):
        return call_named(function, arguments, field="loss.name", name=name)
    return functools.partial(function, **arguments) if arguments else function


def _metric(
    name: str,
) -> Any:  # Any: a name, the user's function of (output, target), or an object such as torchmetrics'
    if not registry.is_user_code(name):
        return name
    found = registry.import_callable(name)
    return call_named(found, {}, field="train.metrics", name=name) if inspect.isclass(found) else found
