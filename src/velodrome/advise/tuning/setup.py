"""One way to run a recipe: what the user changed about it, and what a technique does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.recipes.toml_writer import toml_value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Change", "Setup"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one choice of a technique changes."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """recipe field, such as "train.precision", to its new value"""

    def __str__(self) -> str:
        return ", ".join(f"{key.removeprefix('train.')}={toml_value(value)}" for key, value in self.fields.items())


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recipe's name with everything that is to be different about it."""

    recipe: str
    overrides: tuple[str, ...] = ()
    """of the user's, which hold for every trial"""
    change: Change = field(default_factory=Change)

    @property
    def all_overrides(self) -> list[str]:
        """Return what the command line would be given."""
        own = [f"{key}={toml_value(value)}" for key, value in self.change.fields.items()]
        return [*self.overrides, *own]

    def with_change(self, change: Change) -> Setup:
        """Return this setup with one more change."""
        both = Change(fields={**self.change.fields, **change.fields})
        return Setup(recipe=self.recipe, overrides=self.overrides, change=both)
