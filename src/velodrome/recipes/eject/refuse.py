"""What a script cannot do: refused by the name of the recipe's field, rather than left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe

__all__ = ["check_can_be_ejected", "refusal"]

# Fields that the parts write out; a field that is added to the schema is refused until a part knows it.
_TRAIN = {
    "epochs", "steps", "batch_size", "eval_batch_size", "metrics", "seed", "device", "shuffle", "drop_last", "precision",
    "accumulate", "micro_batch", "clip_norm", "clip_value", "compile", "freeze",
}  # fmt: skip
_CHANGES_NO_LOSS = {"num_workers", "grad_norms"}  # of data in memory; of the records
_TABLES = {"model", "data", "loss", "optimizer", "scheduler", "train", "ema", "early_stopping"}
_OF_THE_RECORDS = {"checkpoint", "logging"}
_REASONS = {
    "train.seconds": "The clock decides where it ends, so no two runs print the same losses. Use train.epochs or train.steps.",
    "train.engine": "A plain script calls PyTorch, one call at a time. Leave it out, or use train.compile.",
    "train.on_nonfinite": "A plain script does not look whether its losses are finite. Leave it out.",
    "train.threads": "A plain script leaves them to torch. Leave it out, and start the script with OMP_NUM_THREADS set.",
    "train.in_memory": "A plain script reads its data in its own way. Leave it out.",
    "train.resident": "A plain script moves each batch to its device. Leave it out.",
    "train.pin_memory": "A plain script moves each batch to its device. Leave it out.",
    "train.stop_after": "A plain script does not save where it is. Leave it out.",
}
_OPTIMIZER = {"name", "lr"}


def refusal(field: str, value: object, reason: str = "") -> RecipeError:
    """Return the error that says which field cannot be written as plain PyTorch."""
    text = f"{field}={value!r} cannot be ejected. {reason or 'No plain script is written for it: leave it out.'}"
    return RecipeError(text, problems=(), field=field)


def check_can_be_ejected(recipe: Recipe) -> None:
    """Refuse a recipe that says something which no part of the script writes out.

    Raises:
        RecipeError: with the field's name.
    """
    for name in type(recipe).model_fields:
        table: Any = getattr(recipe, name)
        if table is not None and name not in _TABLES | _OF_THE_RECORDS:
            raise refusal(f"[{name}]", table.model_dump(exclude_none=True))
    for name in type(recipe.train).model_fields:
        value = getattr(recipe.train, name)
        is_off = value is None or value == type(recipe.train).model_fields[name].default
        if not is_off and name not in _TRAIN | _CHANGES_NO_LOSS:
            raise refusal(f"train.{name}", value, _REASONS.get(f"train.{name}", ""))
    if recipe.data.transforms:
        reason = "A plain script has no batched transforms whose random numbers belong to the samples. Leave it out."
        raise refusal("data.transforms", list(recipe.data.transforms), reason)
    for name in type(recipe.optimizer).model_fields:
        value = getattr(recipe.optimizer, name)
        if value is not None and name not in _OPTIMIZER:
            raise refusal(f"optimizer.{name}", value)
