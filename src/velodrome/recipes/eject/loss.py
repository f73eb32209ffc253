"""The loss of a recipe, what it is a mean over, and the metrics beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.recipes import registry
from velodrome.recipes.eject.code import Part, call, keywords
from velodrome.recipes.eject.refuse import refusal
from velodrome.recipes.eject.user_code import import_as
from velodrome.step.losses import Loss, resolve_loss

if TYPE_CHECKING:
    from velodrome.recipes.build import Ready

__all__ = ["LossLines", "Metric", "loss_lines", "metrics_of", "try_model"]


@dataclass(frozen=True, kw_only=True)
class LossLines:
    """How a script computes the loss of `output` and `y`."""

    part: Part
    setup: tuple[str, ...]
    """of main(), where the loss is an object"""
    function: str
    arguments: tuple[str, ...]
    count: str
    """what the loss is a mean over"""
    needs_function: bool
    """whether evaluate() must be given the object that `setup` made"""


@dataclass(frozen=True)
class Metric:
    """A mean of yes and no."""

    name: str
    variable: str
    lines: tuple[str, ...]
    """add to the variable what is right"""
    count: str


def try_model(ready: Ready) -> Tensor:
    """Return the output for two validation or training samples, to know its shape; the model is left as it was."""
    inputs = ready.data.train[0][:2]
    mode = ready.model.training
    try:
        with torch.inference_mode():
            return ready.model.eval()(inputs)
    finally:
        ready.model.train(mode)


def loss_lines(ready: Ready) -> LossLines:
    """Return how the loss is computed.

    Raises:
        RecipeError: it leaves targets out or weighs them, so that its mean is over something else than samples or positions.
    """
    table, loss = ready.recipe.loss, _resolved(ready)
    target = ready.data.train[1]
    if loss.divisor == "items" or (loss.kind == "classes" and _has_ignored(loss, ready)):
        field = next((name for name in ("weight", "ignore_index") if name in table.arguments), "name")
        reason = (
            "Its mean is not over samples: some targets are weighted or left out, which no plain script is written for."
        )
        raise refusal(f"loss.{field}", table.arguments.get(field, table.name), reason)
    is_per_position = loss.kind == "classes" and target.ndim > 1 and not target.is_floating_point()
    count = "y.numel()" if is_per_position else "len(x)"
    if registry.is_user_code(table.name):
        line, name = import_as(table.name, "own_loss")
        is_class = isinstance(registry.import_callable(table.name), type)
        if is_class:
            setup = call(f"loss_function = {name}", keywords(table.arguments), level=1)
            return _made(Part(imports=(line,)), setup, count)
        arguments = ["output", "y", *keywords(table.arguments)]
        return LossLines(
            part=Part(imports=(line,)),
            setup=(),
            function=name,
            arguments=tuple(arguments),
            count=count,
            needs_function=False,
        )
    if isinstance(loss.function, nn.Module):
        arguments = {**({"reduction": loss.function.reduction} if loss.name == "kl_div" else {}), **loss.arguments}
        return _made(
            Part(), call(f"loss_function = nn.{type(loss.function).__name__}", keywords(arguments), level=1), count
        )
    name = f"F.{loss.function.__name__}"
    return LossLines(part=Part(), setup=(), function=name, arguments=("output", "y"), count=count, needs_function=False)


def metrics_of(ready: Ready, output: Tensor) -> list[Metric]:
    """Return the metrics of a recipe, in its order.

    Args:
        ready: with tensors as data.
        output: of the model, for its shape.
    Raises:
        RecipeError: one is code of the user's.
    """
    found = []
    for name in ready.recipe.train.metrics:
        if registry.is_user_code(name):
            raise refusal("train.metrics", name, "Only accuracy and top-k are written as plain PyTorch: leave it out.")
        match = re.fullmatch(r"top[_-]?([0-9]+)", name)
        if match:
            lines = (
                f"likeliest = output.topk({match[1]}, dim=1).indices",
                f"in_top{match[1]} += (likeliest == y.unsqueeze(1)).sum()",
            )
            found.append(Metric(f"top{match[1]}", f"in_top{match[1]}", lines, "y.numel()"))
        else:
            hits, count = _accuracy(_resolved(ready), output, ready.data.train[1])
            found.append(Metric("accuracy", "correct", (f"correct += {hits}.sum()",), count))
    return found


def _accuracy(loss: Loss, output: Tensor, target: Tensor) -> tuple[str, str]:
    """Return which predictions are right, and how many there are: as `velodrome.metrics.named.correct` decides it."""
    threshold = f"{loss.binary_threshold:g}"
    if output.ndim == target.ndim + 1:
        if output.shape[1] > 1:
            return "(output.argmax(dim=1) == y)", "y.numel()"
        return f"((output.squeeze(1) > {threshold}) == (y > 0.5))", "y.numel()"
    if loss.is_binary or not target.is_floating_point() or output.ndim < 2 or output.shape[1] == 1:
        return f"((output > {threshold}) == (y > 0.5))", "y.numel()"
    return "(output.argmax(dim=1) == y.argmax(dim=1))", "y.numel() // y.shape[1]"


def _made(part: Part, setup: str, count: str) -> LossLines:
    return LossLines(
        part=part,
        setup=tuple(setup.splitlines()),
        function="loss_function",
        arguments=("output", "y"),
        count=count,
        needs_function=True,
    )


def _resolved(ready: Ready) -> Loss:
    given: Any = ready.trainer_arguments["loss"]
    loss = resolve_loss(given)
    assert loss is not None  # a recipe has one
    return loss


def _has_ignored(loss: Loss, ready: Ready) -> bool:
    targets = [split[1] for split in (ready.data.train, ready.data.val) if split is not None]
    return any(not each.is_floating_point() and bool((each == loss.ignore_index).any()) for each in targets)
