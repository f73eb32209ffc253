"""The weights of a run, a checkpoint folder or a file by itself become one file, as it was ordered."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from velodrome.checkpoint.read import is_of_checkpoint
from velodrome.recipes.callbacks import RECIPE_FILE
from velodrome.recipes.export.gather import gather_metadata, prepare_model
from velodrome.recipes.export.weights_file import read_weights
from velodrome.recipes.export.write import write_program, write_weights
from velodrome.recipes.trained_model import RunNotes, find_run, load_recipe_for, load_weights, read_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from velodrome.checkpoint.read import Kind
    from velodrome.recipes.export.write import Written

__all__ = ["Order", "default_target", "export_run"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be exported, and into which file.

    Args:
        run: a run directory, a checkpoint folder or a .safetensors file.
        which: checkpoint of a run directory.
        weights_kind: of its weights.
        file: what these three stood for when the order was given; the other two say only how to ask again.
        format: of the file to write.
        target: the file to write.
        force: an existing one is written over.
        recipe: that the user trusts; None for the run's own.
        overrides: of the recipe.
    """

    run: Path
    which: Literal["best", "last"]
    weights_kind: Kind
    file: Path
    format: Literal["pt2", "onnx", "safetensors"]
    target: Path
    force: bool = False
    recipe: str | None = None
    overrides: Sequence[str] = field(default_factory=tuple)


def default_target(file: Path, format: str) -> Path:
    """Return a file in the current folder, by the name of the run that weights are of, or else by their own."""
    run = find_run(file) if is_of_checkpoint(file) else None
    return Path(f"{file.stem if run is None else run.name}.{format}")


def export_run(order: Order, *, say: Callable[[str], Any]) -> Written:
    """Write what was ordered.

    Args:
        order: its target was looked at by `check_target`.
        say: gets lines about the data.
    Raises:
        RecipeError: a program is ordered, and nothing that is trusted says how to build the model.
        DataError: the data cannot be read, and the run's notes do not suffice.
        CheckpointError: the weights are damaged, gone, or do not fit the model.
        RefusedError: the file cannot be written, or does not give what the model gives.
    """
    if order.format == "safetensors":
        return _export_weights(order)
    loaded, notes = load_recipe_for(order.run, order.recipe, order.overrides), read_notes(order.run)
    metadata = gather_metadata(order.file, loaded.recipe, notes)
    model, example = prepare_model(loaded, notes, say=say)
    load_weights(model, order.file, order.run, order.which)
    return write_program(
        model.eval().requires_grad_(False),  # so that what the file gives can be read as it is
        example,
        order.target,
        metadata,
        format=order.format,
        instead=_command_for_weights(order),
        force=order.force,
    )


def _export_weights(order: Order) -> Written:
    """Write weights: they need neither the model's code nor the data; a recipe is only written down."""
    # A recipe in a folder above a file that lies by itself says nothing about it.
    run = find_run(order.file) if is_of_checkpoint(order.file) else None
    has_recipe = order.recipe is not None or (run is not None and (run / RECIPE_FILE).is_file())
    recipe = load_recipe_for(order.run, order.recipe, order.overrides).recipe if has_recipe else None
    notes = RunNotes() if run is None else read_notes(run)
    metadata = gather_metadata(order.file, recipe, notes)
    return write_weights(read_weights(order.file), order.target, metadata, force=order.force)


def _command_for_weights(order: Order) -> str:
    """Return the command that exports the same weights as safetensors."""
    asked = (("weights", order.which, "best"), ("kind", order.weights_kind, "auto"))
    options = "".join(f" --{name} {value}" for name, value, default in asked if value != default)
    return f"velodrome export {shlex.quote(str(order.run))} --format safetensors{options}"
