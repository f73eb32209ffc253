"""What a recipe names is called: whose fault a failure is, and what is not called at all because nobody vouched for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError, VelodromeError
from velodrome.recipes import registry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_named", "refuse_untrusted"]


def call_named(function: Callable[..., Any], arguments: dict[str, Any], *, field: str, name: str) -> Any:
    """Return what a callable gives that a recipe names.

    Args:
        function, arguments: are called.
        field: of the recipe that names it, such as "model.name".
        name: as it stands there.
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
            raise RecipeError(f'{field}="{name}" refused its arguments: {error}.', problems=()) from error
        if not registry.is_user_code(name):
            raise
        raise RecipeError(
            f'{field}="{name}" failed when it was called: {registry.describe_error(error)}. '
            f"Correct the callable or its arguments in [{field.partition('.')[0]}]; -v shows the traceback.",
            problems=(),
        ) from error


def refuse_untrusted(field: str, name: str, *, trusted: bool) -> None:
    """Refuse code that a recipe names which was found in a run directory.

    Args:
        field: of the recipe, such as "model.name".
        name: as it stands there: of something built in, or code of the user's.
        trusted: whether the user's own command names the recipe.
    Raises:
        RecipeError: nobody vouches for the code.
    """
    if trusted or not registry.is_user_code(name):
        return
    in_python = ", or give the model yourself in Python (model=)" if field == "model.name" else ""
    raise RecipeError(
        f'{field}="{name}" stands in a recipe inside a run directory. Code is imported only when your own '
        f"command or recipe names it: pass a recipe that you trust with --recipe{in_python}.",
        problems=(),
    )
