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
# Beside None: what the trainer does anyway, or a script.
_OFF: dict[str, tuple[object, ...]] = {
    "in_memory": (False,), "resident": (False, "auto"), "pin_memory": (False,), "channels_last": (False,), "engine": ("auto", "eager"),
    "on_oom": ("stop",), "on_nonfinite": ("stop",), "gradient_checkpointing": ((),),
}  # fmt: skip


def _either(override: str) -> str:
    return f"Leave it out, or give {override}."


_REASONS = {
    "train.seconds": "The clock decides where it ends, so no two runs print the same losses. Use train.epochs or train.steps.",
    "train.engine": "A plain script calls PyTorch, one call at a time. Leave it out, or give train.engine=auto; train.compile=true is written out.",
    "train.on_nonfinite": f"A plain script does not look whether its losses are finite. {_either('train.on_nonfinite=stop')}",
    "train.threads": "A plain script leaves them to torch. No override turns it off: take its line out of the recipe, and start the script with "
    "OMP_NUM_THREADS set.",
    "train.in_memory": f"A plain script reads its data in its own way. {_either('train.in_memory=false')}",
    "train.resident": f"A plain script moves each batch to its device. {_either('train.resident=false')}",
    "train.pin_memory": f"A plain script moves each batch to its device. {_either('train.pin_memory=false')}",
    "train.channels_last": f"No plain script is written for it. {_either('train.channels_last=false')}",
    "train.on_oom": f"No plain script is written for it. {_either('train.on_oom=stop')}",
    "train.gradient_checkpointing": f"""No plain script is written for it. {_either("'train.gradient_checkpointing=[]'")}""",
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
        is_off = value is None or value == type(recipe.train).model_fields[name].default or value in _OFF.get(name, ())
        if not is_off and name not in _TRAIN | _CHANGES_NO_LOSS:
            raise refusal(f"train.{name}", value, _REASONS.get(f"train.{name}", ""))
    if recipe.data.transforms:
        reason = "A plain script has no batched transforms whose random numbers belong to the samples. Leave it out."
        raise refusal("data.transforms", list(recipe.data.transforms), reason)
    for name in type(recipe.optimizer).model_fields:
        value = getattr(recipe.optimizer, name)
        if value is not None and name not in _OPTIMIZER:
            raise refusal(f"optimizer.{name}", value)
