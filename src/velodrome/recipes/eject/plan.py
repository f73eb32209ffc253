"""Everything that the loop of a script is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from velodrome.recipes.eject.average import Averages
    from velodrome.recipes.eject.data import Data
    from velodrome.recipes.eject.loss import LossLines, Metric
    from velodrome.recipes.eject.schedule import Scheduling
    from velodrome.recipes.eject.stopping import Stopping
    from velodrome.recipes.eject.updates import Stepping
    from velodrome.recipes.schema import Recipe

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each part of a recipe came to."""

    recipe: Recipe
    data: Data
    has_val: bool
    model: tuple[str, list[str]]
    """what makes it, and its arguments"""
    frozen: list[str]
    """names of parameters that are not trained"""
    optimizer: str
    """the lines that make it"""
    loss: LossLines
    metrics: list[Metric]
    schedule: Scheduling
    averages: Averages
    stepping: Stepping
    stopping: Stopping

    @property
    def autocast(self) -> str:
        """The number format of autocast, or nothing."""
        return {"bf16": "torch.bfloat16", "fp16": "torch.float16"}.get(self.recipe.train.precision or "", "")
