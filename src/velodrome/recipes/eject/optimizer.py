"""The optimizer of a recipe, fused as Velodrome makes it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from velodrome.recipes import registry
from velodrome.recipes.eject.code import Part, call, keywords
from velodrome.recipes.eject.user_code import import_as

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe

__all__ = ["optimizer_part"]


def optimizer_part(recipe: Recipe) -> tuple[Part, str]:
    """Return the lines of main() that make the optimizer of `model`, and what they import."""
    table = recipe.optimizer
    arguments = {**({} if table.lr is None else {"lr": table.lr}), **table.arguments}
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    if registry.is_user_code(table.name):
        line, name = import_as(table.name, "make_optimizer")
        return Part(imports=(line,)), call(f"optimizer = {name}", ["model.parameters()", *keywords(arguments)], level=1)
    kind = next(name for name in vars(torch.optim) if name.lower() == table.name.lower() and name != name.lower())
    has_fused = "fused" in inspect.signature(getattr(torch.optim, kind)).parameters
    if has_fused and not {"fused", "foreach", "differentiable"} & arguments.keys():
        arguments["fused"] = True
    return Part(), call(f"optimizer = torch.optim.{kind}", ["model.parameters()", *keywords(arguments)], level=1)
