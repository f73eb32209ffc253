"""Early stopping, as `velodrome.EarlyStopping` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from velodrome.recipes.eject.refuse import refusal
from velodrome.recipes.switches import make_early_stopping

if TYPE_CHECKING:
    from velodrome.recipes.schema import Recipe

__all__ = ["Stopping", "stopping_of"]


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """How a script ends before its last epoch; with nothing in it, never."""

    constants: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    after_epoch: tuple[str, ...] = ()


def stopping_of(recipe: Recipe) -> Stopping:
    """Return the lines that watch a value.

    Raises:
        RecipeError: the best weights are to be put back.
    """
    if recipe.early_stopping is None:
        return Stopping()
    rule = make_early_stopping(recipe.early_stopping)
    if rule.restore_best:
        raise refusal("early_stopping.restore_best", True, "A script keeps the last weights: leave it out.")
    value = f'row["{rule.monitor.name}"]'
    is_less = rule.monitor.direction == "min"
    margin = (" - MIN_DELTA" if is_less else " + MIN_DELTA") if rule.min_delta else ""
    return Stopping(
        constants=(
            f"PATIENCE = {rule.patience}  # epochs without an improvement that end it",
            *([f"MIN_DELTA = {rule.min_delta!r}  # the least that counts as one"] if rule.min_delta else []),
        ),
        setup=(f'best, epochs_waited = float("{"" if is_less else "-"}inf"), 0',),
        after_epoch=(
            f"if {value} {'<' if is_less else '>'} best{margin}:",
            f"    best, epochs_waited = {value}, 0",
            "else:",
            "    epochs_waited += 1",
            "if epochs_waited == PATIENCE:",
            "    break",
        ),
    )
