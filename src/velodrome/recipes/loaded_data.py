"""What `[data]` names is called, and its answer brought into one shape; read into memory where the recipe says so."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError
from velodrome.recipes import registry
from velodrome.recipes.calls import call_named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from velodrome.recipes.schema import Recipe

__all__ = ["LoadedData", "is_indexed", "load_data", "read_into_memory"]


@dataclass(frozen=True, kw_only=True)
class LoadedData:
    """What the data callable gave, in one shape."""

    train: Any  # a tuple of tensors, or the user's own dataset or loader
    val: Any  # the same, or None
    origin: str  # a sentence for people
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()  # that they were read from, where one of our sources read them


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
    given = call_named(function, arguments, field="data.name", name=recipe.data.name)
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


def read_into_memory(data: LoadedData, recipe: Recipe, *, say: Callable[[str], Any]) -> LoadedData:
    """Return the data with what is read sample by sample read once and kept, and say how long that took."""
    from velodrome.data import holding

    if not is_indexed(data.train):
        raise RecipeError(
            f'train.in_memory keeps the samples of a dataset, and data.name="{recipe.data.name}" gives a {type(data.train).__name__} of batches as '
            f"they are. Leave it out.",
            problems=(),
        )
    begun = perf_counter()
    val = holding.read_into_memory(data.val, role="validation") if is_indexed(data.val) else data.val
    train = holding.read_into_memory(data.train)
    if train is not data.train or val is not data.val:
        say(f"data: read into memory in {perf_counter() - begun:.3g} s, before the run's own time")
    return replace(data, train=train, val=val)


def is_indexed(data: Any) -> bool:
    """Return whether it is tensors or a map-style dataset, which can be read again and again."""
    from torch.utils.data import Dataset, IterableDataset

    return isinstance(data, (tuple, dict, Dataset)) and not isinstance(data, IterableDataset)
