"""Which names a recipe may use for a model or data, and how "package.module:callable" is found."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

# Plain text, so that a name can be listed or refused without importing what stands behind it.
BUILTIN_MODELS = {
    "cnn": "velodrome.recipes.models.convolution:cnn",
    "gpt": "velodrome.recipes.models.transformer:gpt",
    "mlp": "velodrome.recipes.models.perceptron:mlp",
}
BUILTIN_DATA = {
    "fashion-mnist": "velodrome.recipes.named_data:fashion_mnist",
    "mnist": "velodrome.recipes.named_data:mnist",
    "csv": "velodrome.recipes.named_data:csv",
    "text": "velodrome.recipes.named_data:text",
}
BUILTIN_AVERAGES = {"ema": "velodrome.averages:EMA", "swa": "velodrome.averages:SWA"}
EARLY_STOPPING = "velodrome.callbacks.early_stopping:EarlyStopping"


def is_user_code(name: str) -> bool:
    """Return whether the name points at the user's own "package.module:callable"."""
    return ":" in name


def resolve_model(name: str) -> Callable[..., Any]:  # Any: a torch Module, which this file does not import
    """Return the callable that builds the model of that name."""
    return _resolve(name, BUILTIN_MODELS, "model")


def resolve_data(name: str) -> Callable[..., Any]:  # Any: Splits, or a (train, val) pair of the user's own
    """Return the callable that gives the data of that name."""
    return _resolve(name, BUILTIN_DATA, "data")


def _resolve(name: str, builtin: dict[str, str], kind: str) -> Callable[..., Any]:
    if is_user_code(name):
        return import_callable(name)
    if name not in builtin:
        raise RecipeError(
            f'is no known {kind}. {nearest(name, builtin)} Or name your own as "package.module:callable".',
            name=name,
        )
    return import_callable(builtin[name])


def import_callable(name: str) -> Callable[..., Any]:  # Any: the user's code returns what it likes
    """Import "package.module:callable"; the current folder counts as importable.

    Raises:
        RecipeError: with the part that failed: the form, the module, what the module itself raised (its cause), the
            attribute, or that it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise RecipeError('is not of the form "package.module:callable".', name=name)
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not (module_name + ".").startswith(missing + "."):
            raise RecipeError(
                f'names the module "{module_name}", whose import failed: {describe_error(error)}. Correct the module.',
                name=name,
            ) from error
        raise RecipeError(
            f'names the module "{module_name}", but there is no module "{missing}". '
            "Modules are looked for in the current folder and among the installed packages.",
            name=name,
        ) from None
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            raise RecipeError(
                f'names "{attribute}", which "{module_name}" does not have. {nearest(part, public)}', name=name
            )
        found = getattr(found, part)
    if not callable(found):
        raise RecipeError(f"is a {type(found).__name__}, which cannot be called.", name=name)
    return found


def describe_error(error: BaseException) -> str:
    """Return what the user's own code raised and where: `ValueError: too wide (mine.py, line 3)`."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({os.path.basename(error.filename or '?')}, line {error.lineno})"
    what = (
        f"it called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if "site-packages" not in frame.filename]  # where torch raised explains little
    place = (own or frames)[-1]
    return f"{what.rstrip('.')} ({os.path.basename(place.filename)}, line {place.lineno})"
