"""Finds a recipe, reads it, applies overrides and reports everything that is wrong with it at once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.errors import RecipeError, nearest
from velodrome.recipes.problems import raise_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from velodrome.recipes.schema import Recipe

LARGEST_RECIPE_BYTES = 1_000_000  # a recipe is a page of text; a gigabyte of it is a mistake or an attack


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A checked recipe, and where it came from."""

    name: str  # "fashion-mnist-mlp", or the stem of the user's file: names the run directory
    origin: str  # the file's name, for messages
    recipe: Recipe
    trusted: bool = True  # False: found inside a run directory, so its "package.module:callable" is not imported


def builtin_names() -> list[str]:
    """Return the names of the built-in recipes."""
    folder = resources.files("velodrome.recipes") / "builtin"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def builtin_text(name: str) -> str:
    """Return the TOML text of a built-in recipe."""
    if name not in builtin_names():
        raise RecipeError(
            f'There is no built-in recipe "{name}". {nearest(name, builtin_names())} '
            "`velodrome recipes` lists them; your own recipe is given as a path that ends in .toml.",
            name=name,
        )
    return (resources.files("velodrome.recipes") / "builtin" / f"{name}.toml").read_text(encoding="utf-8")


def builtin_summary(name: str) -> str:
    """Return what a built-in recipe says about itself in its first comment line."""
    return builtin_text(name).splitlines()[0].lstrip("# ").strip()


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, trusted: bool = True) -> LoadedRecipe:
    """Read a built-in recipe by name or a TOML file by path, with `key=value` overrides.

    Args:
        source: "fashion-mnist-mlp", or "my.toml".
        overrides: such as `["optimizer.lr=0.01"]`.
        trusted: False for a recipe found inside a run directory: no user code that it names is imported.
    Raises:
        RecipeError: with every mistake in `problems`.
    """
    from velodrome.recipes.overrides import apply_overrides  # pydantic only when a recipe is read

    name, origin, text = _find(source)
    tables, origins, problems = apply_overrides(_parse(text, origin), overrides, file=origin)
    recipe = _validated(tables, origins, problems, trusted=trusted)
    return LoadedRecipe(name=name, origin=origin, recipe=recipe, trusted=trusted)


def _validated(tables: dict[str, Any], origins: Any, problems: list[Any], *, trusted: bool) -> Recipe:
    from velodrome.recipes.check import check_names
    from velodrome.recipes.schema import validate

    recipe, wrong = validate(tables, origins)
    problems = [*problems, *wrong, *check_names(tables, origins, import_user_code=trusted)]
    raise_problems(problems)
    assert recipe is not None  # no problems means a recipe
    return recipe


def _find(source: str | Path) -> tuple[str, str, str]:
    given = str(source)
    looks_like_path = isinstance(source, Path) or given.endswith(".toml") or re.search(r"[/\\]", given)
    if not looks_like_path and not Path(given).is_dir():
        return given, f"{given}.toml", builtin_text(given)
    path = Path(source)
    return path.stem, path.name, _read_text(path)


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            inside = path / "recipe.toml"
            hint = f"Give the file: {inside}." if inside.is_file() else "Give the path of a .toml file."
            raise RecipeError(f"{path} is a folder, not a recipe. {hint}", path=path)
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is not a regular file, so it is not read. Save the recipe to a file.", path=path)
        with path.open("rb") as file:
            raw = file.read(LARGEST_RECIPE_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(
            f"There is no recipe file {path}. `velodrome recipes` lists the built-in ones; "
            "`velodrome init` writes one to start from.",
            path=path,
        ) from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.", path=path) from error
    if len(raw) > LARGEST_RECIPE_BYTES:
        raise RecipeError(
            f"{path} is larger than {LARGEST_RECIPE_BYTES:,} bytes, the most a recipe may have. Is it a recipe?",
            path=path,
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}. Save it as UTF-8.", path=path
        ) from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    from velodrome.recipes.overrides import is_nested_too_deeply

    try:
        tables = tomllib.loads(text)
        if is_nested_too_deeply(tables):
            raise RecursionError
        return tables
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place.group(1)) if place else len(text.splitlines())
        raise RecipeError(f"Not valid TOML: {error}. [{origin}: line {line}]", line=line) from None
    except ValueError as error:  # a number of thousands of digits
        raise RecipeError(f"Not valid TOML: {str(error).split(';')[0]}. [{origin}]") from None
    except RecursionError:
        raise RecipeError(f"The lists or tables are nested too deeply. [{origin}]") from None
