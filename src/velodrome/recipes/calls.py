"""What a recipe names is called: whose fault a failure is, and what is not called at all because nobody vouched for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError, VelodromeError
from velodrome.recipes import registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.recipes.read import LoadedRecipe

__all__ = ["call_named", "refuse_untrusted", "untrusted_message"]


def call_named(function: Callable[..., Any], arguments: dict[str, Any], *, table: str, name: str) -> Any:
    """Return what a callable gives that a table of a recipe names.

    Raises:
        RecipeError: it refuses its arguments, or is the user's and fails.
    """
    try:
        return function(**arguments)
    except VelodromeError:
        raise
    except (Exception, SystemExit) as error:
        # An error of a callable of our own is a bug of ours and keeps its traceback, unless the call never began.
        has_begun = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and not has_begun:
            raise RecipeError(f'{table}.name="{name}" refused its arguments: {error}.', problems=()) from error
        if not registry.is_user_code(name):
            raise
        raise RecipeError(
            f'{table}.name="{name}" failed when it was called: {registry.describe_error(error)}. '
            f"Correct the callable or its arguments in [{table}]; -v shows the traceback.",
            problems=(),
        ) from error


def refuse_untrusted(loaded: LoadedRecipe, table: str) -> None:
    """Raise when a recipe found in a run directory names code for this table."""
    name = getattr(loaded.recipe, table).name
    if registry.is_user_code(name) and not loaded.trusted:
        raise RecipeError(untrusted_message(f"{table}.name", name), problems=())


def untrusted_message(field: str, name: str) -> str:
    """Return what is said about code that is named where nobody vouched for it."""
    in_python = ", or give the model yourself in Python (model=)" if field == "model.name" else ""
    return (
        f'{field}="{name}" stands in a recipe inside a run directory. Code is imported only when your own '
        f"command or recipe names it: pass a recipe that you trust with --recipe{in_python}."
    )
