"""A trained model comes back from its run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import CheckpointError, RecipeError
from velodrome.recipes.callbacks import PREPROCESSING_FILE, RECIPE_FILE
from velodrome.record.reading import parse_strict, read_limited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.nn import Module

    from velodrome.checkpoint.read import Kind
    from velodrome.recipes.read import LoadedRecipe

RUN_FILE = "run.json"
_MAX_NOTES_BYTES = 1 << 24
_LEVELS_UP = 4  # from run/checkpoints/step-00000938/model.safetensors to run/


def load_model(
    path: str | Path, model: Module | None = None, *, weights: Literal["best", "last"] = "best", kind: Kind = "auto"
) -> Module:
    """Load trained weights, and build the model that they belong to unless you give it.

    Args:
        path: a run directory, a checkpoint folder or a .safetensors file.
        model: gets the weights; without one the run's own recipe.toml says what to build. A model that is the user's own
            code is never imported because a run directory says so: give it here.
        weights: of which checkpoint of a run directory.
        kind: "raw" or "averaged", for a run with EMA or SWA, which saves both; "auto" is the one that it evaluated.
    Returns:
        The model, on the CPU, in eval mode.
    Raises:
        RecipeError: there is no recipe beside the weights, or it names code of the user's.
        CheckpointError: the weights are missing, damaged, or do not fit the model.
    """
    file = find_weights(path, weights, kind)  # a wrong path is reported as such, before a missing recipe
    if model is None:
        from velodrome.recipes.build import build_model

        model = build_model(load_run_recipe(path).recipe, trusted=False)
    load_weights(model, file, path, weights)
    return model.eval()


def find_weights(path: str | Path, which: Literal["best", "last"], kind: Kind = "auto") -> Path:
    """Return the .safetensors file that a path stands for."""
    from velodrome.checkpoint.read import resolve_weights

    return resolve_weights(Path(path), which, kind)


def load_weights(model: Module, file: Path, path: str | Path, which: Literal["best", "last"]) -> None:
    """Put the weights that `find_weights` found into a model that is there already; every name and shape must fit.

    Args:
        model: changed in place.
        file: as it was found: a run under way may have other best and last weights by now.
        path, which: what it was found by.
    """
    from velodrome.checkpoint.read import load_file_into

    load_file_into(model, file, path=path, which=which)


def load_run_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read the recipe.toml of the run that a path lies in; nothing that it names is imported.

    Raises:
        RecipeError: that run has none, or there is no run.
    """
    from velodrome.recipes.read import load_recipe

    run = find_run(path)
    if run is None or not (run / RECIPE_FILE).is_file():
        where = f"{path} or the folders above it" if run is None else f"the run {run}"
        raise RecipeError(
            f"There is no {RECIPE_FILE} in {where}, so nothing says how to build the model. "
            "Give the model yourself (model= in Python, --recipe on the command line).",
            path=Path(path),
        )
    return load_recipe(run / RECIPE_FILE, overrides, trusted=False)


def load_recipe_for(path: str | Path, recipe: str | None, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Return the recipe that the user named for a run, or else the run's own, which imports nothing."""
    from velodrome.recipes.read import load_recipe

    return load_run_recipe(path, overrides) if recipe is None else load_recipe(recipe, overrides)


@dataclass(frozen=True, kw_only=True)
class RunNotes:
    """What a run noted about its data."""

    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON


def read_notes(path: str | Path) -> RunNotes:
    """Read the preprocessing.json of the run that a path lies in; empty notes when there is none.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    run = find_run(path)
    file = None if run is None else run / PREPROCESSING_FILE
    if file is None or not file.is_file():
        return RunNotes()
    try:
        notes = parse_strict(read_limited(file, _MAX_NOTES_BYTES))
        return RunNotes(class_names=tuple(map(str, notes["class_names"])), preprocessing=dict(notes["data"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}), so new rows cannot be prepared as the training rows were. "
            "Restore the file, or train again.",
            path=file,
        ) from error


def find_run(path: str | Path) -> Path | None:
    """Return the run directory that a path is or lies in, or None.

    It is known by its run.json, which the run of a script has too, or by its recipe.toml, which is enough to build the model of weights
    that were copied elsewhere with it.
    """
    here = Path(path).absolute()
    for folder in (here, *here.parents[:_LEVELS_UP]):
        if (folder / RUN_FILE).is_file() or (folder / RECIPE_FILE).is_file():
            return folder
    return None
