"""The option that the next verb needs: a run's own recipe is not trusted to name the user's code."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.recipes.schema import Recipe

__all__ = ["option_of_run", "recipe_option"]


def recipe_option(recipe: Recipe, file: Path | str) -> str:
    """Return `--recipe FILE` with a space in front, where the recipe names the user's code; nothing otherwise."""
    from velodrome.recipes.registry import is_user_code

    names = [*(table.name for table in recipe.named_tables().values()), *recipe.train.metrics]
    return f" --recipe {shlex.quote(str(file))}" if any(map(is_user_code, names)) else ""


def option_of_run(run_dir: Path) -> str:
    """Return it for a run of which nothing but its folder is known; nothing for one whose recipe cannot be read."""
    from velodrome.errors import VelodromeError
    from velodrome.recipes.trained_model import load_run_recipe

    try:
        return recipe_option(load_run_recipe(run_dir).recipe, run_dir / "recipe.toml")
    except VelodromeError:
        return ""  # the next verb says what is wrong with it
