"""A checked recipe becomes ready objects: model, loaders, and the arguments of a Trainer.

The loop below never sees a recipe; it gets what stands in `Ready`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.errors import DataError, RecipeError, VelodromeError
from velodrome.recipes import registry
from velodrome.recipes.fitting import check_task
from velodrome.recipes.named_transforms import change_sample, make_transform
from velodrome.recipes.schema import DURATIONS, NEVER, Recipe
from velodrome.recipes.switches import WHOLE_RUN, early_stopping, loader_switches, training_switches, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from velodrome.callbacks.base import Callback
    from velodrome.data.loader import DataLoader
    from velodrome.recipes.read import LoadedRecipe
    from velodrome.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class LoadedData:
    """What the data callable gave, in one shape."""

    train: Any  # a tuple of tensors, or the user's own dataset or loader
    val: Any  # the same, or None
    origin: str  # a sentence for people
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()  # that they were read from, where one of our sources read them


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
    size = ready.recipe.train
    result = trainer.fit(training_loader(ready), steps=1)
    val: dict[str, float] = {}
    batch = None
    if ready.data.val is not None and is_indexed(ready.data.val):
        loader = _loader(ready.data.val, ready.recipe, batch_size=size.eval_batch_size, training=False)
        batch = next(iter(loader))
        val = trainer.evaluate([batch])
    train = {key.removeprefix("train/"): v for key, v in result.metrics.items() if key.startswith("train/")}
    return Trial(trainer=trainer, train=train, val=val, val_batch=batch)


def training_loader(ready: Ready) -> Any:
    """Return a new loader over the training data, so that the run's own one stays at its first epoch."""
    size = ready.recipe.train.loader_batch_size
    return _loader(ready.data.train, ready.recipe, batch_size=size, training=True)


def evaluation_loader(data: LoadedData, recipe: Recipe) -> Any:
    """Return a new loader over the validation data."""
    return _loader(data.val, recipe, batch_size=recipe.train.eval_batch_size, training=False)


def prediction_data(rows: Any, recipe: Recipe) -> Any:
    """Return what `predict` is given: inputs, in a loader that changes them as evaluation data are where the recipe says so."""
    from velodrome.data.loader import DataLoader

    inputs = rows[0] if isinstance(rows, tuple) else rows  # targets after them
    transform = make_transform(recipe.data.transforms, training=False)
    return inputs if transform is None else DataLoader(inputs, recipe.train.eval_batch_size, transform=transform)


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
    from velodrome.seeding import seed_everything

    for table in loaded.recipe.named_tables():
        refuse_untrusted(loaded, table)
    for metric in loaded.recipe.train.metrics:
        if registry.is_user_code(metric) and not loaded.trusted:
            raise RecipeError(_untrusted_message("train.metrics", metric), problems=())
    if loaded.recipe.train.threads is not None:
        set_threads(loaded.recipe.train.threads)
    data = load_data(loaded.recipe, say=say) if data is None else data
    if loaded.recipe.train.in_memory:
        data = _held(data, loaded.recipe, say=say)
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
    train = _loader(data.train, recipe, batch_size=recipe.train.loader_batch_size, training=True)
    val = None
    if data.val is not None:
        val = _loader(data.val, recipe, batch_size=recipe.train.eval_batch_size, training=False)
    return Ready(
        name=loaded.name,
        recipe=recipe,
        data=data,
        model=model,
        train=train,
        val=val,
        trainer_arguments=_trainer_arguments(recipe),
        fit_arguments={name: getattr(recipe.train, name) for name in DURATIONS},
        callbacks=early_stopping(recipe),
    )


def set_threads(threads: int) -> None:
    """Set the threads of this process: torch has one number for all that it computes on the CPU."""
    from velodrome.data.threads import set_threads as set_as_asked

    set_as_asked(threads)


def load_data(recipe: Recipe, *, say: Callable[[str], Any] = print) -> LoadedData:
    """Call what `[data]` names and bring its answer into one shape; `say` hears where the data came from."""
    from velodrome.data.sources.splits import Splits

    function = registry.resolve_data(recipe.data.name)
    arguments = recipe.data.arguments
    said: list[str] = []

    def say_and_note(line: str) -> None:
        said.append(line)
        say(line)

    if "say" in inspect.signature(function).parameters:
        arguments["say"] = say_and_note
    given = _call(function, arguments, table="data", name=recipe.data.name)
    if isinstance(given, Splits):
        if given.origin not in said:  # our own sources say so themselves
            say(given.origin)
        return LoadedData(
            train=given.train,
            val=given.val,
            origin=given.origin,
            class_names=given.class_names,
            preprocessing=given.preprocessing,
            files=given.files,
        )
    if isinstance(given, tuple) and len(given) == 2:
        origin = f"{recipe.data.name} gave the data."
        say(origin)
        return LoadedData(train=given[0], val=given[1], origin=origin)
    raise RecipeError(
        f'data.name="{recipe.data.name}" returned a {type(given).__name__}. It must return (train, val), each a tuple '
        "of tensors, a Dataset or a loader (val may be None), or a Splits.",
        problems=(),
    )


def build_model(recipe: Recipe, *, trusted: bool = True) -> nn.Module:
    """Build the model that `[model]` names; the caller has seeded.

    Args:
        recipe: with sizes resolved.
        trusted: False refuses a "package.module:callable".
    """
    from torch import nn

    name = recipe.model.name
    if registry.is_user_code(name) and not trusted:
        raise RecipeError(_untrusted_message("model.name", name), problems=())
    model = _call(registry.resolve_model(name), recipe.model.arguments, table="model", name=name)
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
        return _call(function, arguments, table="loss", name=name)
    return functools.partial(function, **arguments) if arguments else function


def _metric(
    name: str,
) -> Any:  # Any: a name, the user's function of (output, target), or an object such as torchmetrics'
    if not registry.is_user_code(name):
        return name
    found = registry.import_callable(name)
    return _call(found, {}, table="train", name=name) if inspect.isclass(found) else found


def _loader(data: Any, recipe: Recipe, *, batch_size: int, training: bool) -> Any:
    """Wrap tensors and datasets in a loader; a loader or another iterable of batches stays as it is."""
    from velodrome.data.loader import DataLoader

    if not is_indexed(data):
        if make_transform(recipe.data.transforms, training=training) is not None:
            raise RecipeError(
                f'data.transforms changes tensors and datasets, and data.name="{recipe.data.name}" gives a {type(data).__name__} of batches as '
                f"they are. Leave it out, or give the loader its transform= yourself.",
                problems=(),
            )
        return data
    return DataLoader(
        data,
        batch_size,
        drop_last=training and recipe.train.drop_last,
        **loader_arguments(recipe, training=training),
    )


def loader_arguments(recipe: Recipe, *, training: bool) -> dict[str, Any]:  # Any: what a DataLoader takes
    """Return what a recipe says of how batches are read and made, whatever their size."""
    return {
        "shuffle": training and recipe.train.shuffle,
        "num_workers": recipe.train.num_workers,
        "transform": make_transform(recipe.data.transforms, training=training),
        **loader_switches(recipe),
    }


def _held(data: LoadedData, recipe: Recipe, *, say: Callable[[str], Any]) -> LoadedData:
    """Return the data with what is read sample by sample read once and kept, and say how long that took."""
    from velodrome.data.holding import read_into_memory

    if not is_indexed(data.train):
        raise RecipeError(
            f'train.in_memory keeps the samples of a dataset, and data.name="{recipe.data.name}" gives a {type(data.train).__name__} of batches as '
            f"they are. Leave it out.",
            problems=(),
        )
    begun = perf_counter()
    val = read_into_memory(data.val, role="validation") if is_indexed(data.val) else data.val
    train = read_into_memory(data.train)
    if train is not data.train or val is not data.val:
        say(f"data: read into memory in {perf_counter() - begun:.3g} s, before the run's own time")
    return replace(data, train=train, val=val)


def is_indexed(data: Any) -> bool:
    """Return whether it is tensors or a map-style dataset, which can be read again and again."""
    from torch.utils.data import Dataset, IterableDataset

    return isinstance(data, (tuple, dict, Dataset)) and not isinstance(data, IterableDataset)


def resolve_sizes(recipe: Recipe, data: Any, *, num_classes: int = 0) -> Recipe:
    """Replace each "auto" of a built-in model by the number that the data have.

    `sizes = ["auto", ...]` of the MLP becomes the numbers of a sample; `vocab_size = "auto"` of the GPT, which is also
    its default, the number of different tokens, and `context = "auto"` the positions of a sample.

    Args:
        recipe: as read.
        data: inputs as one tensor, a tuple of tensors with the inputs first, or a dataset.
        num_classes: how many classes, or tokens, the data have; 0 where they do not say.
    Raises:
        RecipeError: the data are an iterable, whose first sample cannot be looked at without using it up; or they do not
            say how many tokens there are.
    """
    wanted = _auto_sizes(recipe)
    if not wanted:
        return recipe
    field = next(iter(wanted))
    if not is_indexed(data) or isinstance(data, dict):
        begins = "begins with" if field == "sizes" else "is"
        raise RecipeError(f'model.{field} {begins} "auto", which works for tensors and datasets. Write the number.')
    sample = data[0][:1] if isinstance(data, tuple) else data[0][0]
    sample = change_sample(recipe.data.transforms, sample if isinstance(data, tuple) else sample[None])
    shape = sample.shape[1:]
    numbers = {"sizes": math.prod(shape), "vocab_size": num_classes, "context": math.prod(shape[-1:])}
    if "vocab_size" in wanted and not num_classes:
        raise RecipeError(
            f'model.vocab_size is "auto", and data.name="{recipe.data.name}" does not say how many tokens there are. '
            "Write the number."
        )
    if not numbers["sizes"]:
        raise DataError(f"The samples have shape {tuple(sample.shape)}, which holds no number for the model to read.")
    tables = recipe.to_tables()
    for field, others in wanted.items():
        tables["model"][field] = [numbers[field], *others] if field == "sizes" else numbers[field]
    return Recipe.model_validate(tables)


def _auto_sizes(recipe: Recipe) -> dict[str, list[Any]]:  # Any: what TOML can hold; the rest of a list
    """Return the sizes of a built-in model that are to be measured."""
    given = recipe.model.arguments
    sizes = given.get("sizes")
    if recipe.model.name == "mlp" and sizes and sizes[0] == "auto":
        return {"sizes": sizes[1:]}
    if recipe.model.name == "gpt":
        return {field: [] for field in ("vocab_size", "context") if given.get(field, "auto") == "auto"}
    return {}


def _call(function: Callable[..., Any], arguments: dict[str, Any], *, table: str, name: str) -> Any:
    try:
        return function(**arguments)
    except VelodromeError:
        raise
    except (Exception, SystemExit) as error:
        # An error of a callable of our own is a bug of ours and keeps its traceback, unless the call never began.
        has_begun = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and not has_begun:
            raise RecipeError(f'{table}.name="{name}" refused its arguments: {error}.', problems=()) from error
        if not registry.is_user_code(name):
            raise
        raise RecipeError(
            f'{table}.name="{name}" failed when it was called: {registry.describe_error(error)}. '
            f"Correct the callable or its arguments in [{table}]; -v shows the traceback.",
            problems=(),
        ) from error


def refuse_untrusted(loaded: LoadedRecipe, table: str) -> None:
    """Raise when a recipe found in a run directory names code for this table."""
    name = getattr(loaded.recipe, table).name
    if registry.is_user_code(name) and not loaded.trusted:
        raise RecipeError(_untrusted_message(f"{table}.name", name), problems=())


def _untrusted_message(field: str, name: str) -> str:
    in_python = ", or give the model yourself in Python (model=)" if field == "model.name" else ""
    return (
        f'{field}="{name}" stands in a recipe inside a run directory. Code is imported only when your own '
        f"command or recipe names it: pass a recipe that you trust with --recipe{in_python}."
    )
