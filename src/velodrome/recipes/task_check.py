"""Whether a table's target goes with the recipe's loss and metrics, said in words of the table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError

if TYPE_CHECKING:
    from velodrome.recipes.loaded_data import LoadedData
    from velodrome.recipes.schema import Recipe

_FOR_CLASSES = ("cross_entropy", "nll")
_FOR_YES_NO = ("bce", "bce_with_logits")
_FOR_NUMBERS = ("mse", "l1", "smooth_l1", "huber", "kl_div", "poisson_nll")
_COUNTS_CLASSES = re.compile(r"accuracy|top[_-]?[0-9]+")
_MAX_CLASSES_SHOWN = 6


def check_task(recipe: Recipe, data: LoadedData) -> None:
    """Refuse a loss or metric that cannot be meant for the target column of a table.

    The loop would refuse most of this too, but it knows shapes only, and not the column nor the recipe's fields.

    Raises:
        RecipeError: says what the column holds and what to change.
    """
    if data.preprocessing.get("kind") != "csv" or not isinstance(data.train, tuple) or not isinstance(data.val, tuple):
        return
    task, loss = data.preprocessing["task"], recipe.loss.name
    problem = remedy = ""
    if task == "multiclass":
        num = len(data.class_names)
        as_classes = (
            f'loss.name="cross_entropy" with {num} outputs (model.output="none", the last of model.sizes {num})'
        )
        if loss in _FOR_YES_NO:
            problem = f"the loss {loss} is for two classes"
            remedy = f"Correct the rows if some are wrong; or use {as_classes}."
        elif loss in _FOR_NUMBERS:
            problem = f"the loss {loss} is for numbers"
            remedy = f'Read the target as numbers with data.task="regression", or use {as_classes}.'
    elif task == "binary" and loss in _FOR_CLASSES:
        problem = f"the loss {loss} wants class indices, which a yes/no target is not"
        remedy = 'Use data.task="multiclass" with two outputs, or loss.name="bce_with_logits" with one.'
    elif task == "regression":
        low, high, _ = _measure(data)
        metric = next((name for name in recipe.train.metrics if _COUNTS_CLASSES.fullmatch(name)), None)
        if loss in _FOR_CLASSES or (loss in _FOR_YES_NO and (low < 0 or high > 1)):
            problem = f"the loss {loss} is for classes"
            remedy = 'Use loss.name="mse" with model.output="none"; or data.target for another column.'
        elif metric is not None and loss in _FOR_NUMBERS:
            problem = f"the metric {metric} counts right classes"
            remedy = "Leave it out: train.metrics=[]"
            remedy += "." if len(recipe.train.metrics) == 1 else " or those that remain."
    if problem:
        target = data.preprocessing["target"]
        raise RecipeError(f"The target column {target!r} {_describe(task, data)}, and {problem}. {remedy}", problems=())


def _describe(task: str, data: LoadedData) -> str:
    """Return what the column holds: `holds 3 values (0: 60 rows, 1: 59 rows, 2: 1 row)`."""
    low, high, num_values = _measure(data)
    if task == "regression":
        return f"holds {num_values} different numbers from {low:g} to {high:g}"
    counts = _targets(data).long().flatten().bincount(minlength=len(data.class_names)).tolist()
    shown = [f"{name}: {n} row{'s' * (n != 1)}" for name, n in zip(data.class_names, counts, strict=True)]
    more = ", ..." if len(shown) > _MAX_CLASSES_SHOWN else ""
    return f"holds {len(shown)} values ({', '.join(shown[:_MAX_CLASSES_SHOWN])}{more})"


def _measure(data: LoadedData) -> tuple[float, float, int]:
    targets = _targets(data)
    return float(targets.min()), float(targets.max()), len(targets.unique())


def _targets(data: LoadedData) -> Any:  # Any: a Tensor, of torch, which only a verb that builds imports
    import torch

    return torch.cat([data.train[1], data.val[1]])
