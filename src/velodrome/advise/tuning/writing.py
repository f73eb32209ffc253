"""The tuned recipe: the recipe as it was, with what paid, and a head that says what was measured."""

from __future__ import annotations

import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.advise.outputs import check_place, write_answer
from velodrome.errors import ArgumentError, RefusedError, VelodromeError
from velodrome.recipes.read import load_recipe
from velodrome.recipes.toml_writer import to_toml

if TYPE_CHECKING:
    from velodrome.advise.tuning.result import Tuning
    from velodrome.advise.tuning.setup import Setup

__all__ = ["choose_path", "write_tuned_recipe"]


def choose_path(recipe: str, out: Path | None, *, overwrite: bool = False) -> Path:
    """Return where the tuned recipe goes: beside the recipe's file, or for a built-in one into the current folder.

    Raises:
        ArgumentError: it is no .toml file, or its folder is not there.
        RefusedError: it would take the place of a file, of the recipe itself even if others may be replaced, or cannot be written there.
    """
    is_file = recipe.endswith(".toml") or "/" in recipe or "\\" in recipe
    path = out or (Path(recipe).with_suffix(".tuned.toml") if is_file else Path(f"{recipe}.tuned.toml"))
    if path.suffix != ".toml":
        raise ArgumentError(f"--out {path} is no .toml file, which a recipe has to be. Give --out {path}.toml.")
    if not path.parent.is_dir():
        raise ArgumentError(
            f"--out {path} lies in {path.parent}, which is no folder. Make it first, or choose another."
        )
    source = Path(recipe).expanduser()
    if is_file and path.exists() and source.exists() and path.samefile(source):
        raise RefusedError(
            f"{path} is the recipe that is tuned, whose comments and layout would be lost, so nothing was tried. Give another name with --out, "
            f"such as --out {source.with_suffix('.tuned.toml').name}.",
            path=path,
        )
    if path.is_dir() or (not overwrite and (path.exists() or path.is_symlink())):
        raise RefusedError(
            f"{path} exists already, so nothing was tried. Give another name with --out, or --overwrite to replace a file.",
            path=path,
        )
    check_place(path)
    return path


def write_tuned_recipe(path: Path, setup: Setup, result: Tuning) -> None:
    """Write the recipe with all that paid, whole or not at all.

    Raises:
        RefusedError: something is there by now that is no file.
        VelodromeError: the file cannot be written.
    """
    assert result.change is not None
    recipe = load_recipe(setup.recipe, setup.with_change(result.change).all_overrides).recipe
    head = [f"# {setup.recipe}, tuned: {result.sentence}", *_how(result)]
    try:
        write_answer(path, ("\n".join(head) + "\n\n" + to_toml(_given_tables(recipe))).encode())
    except OSError as error:
        fields = " ".join(shlex.quote(each) for each in setup.with_change(result.change).all_overrides)
        raise VelodromeError(
            f"{path} cannot be written: {error.strerror}. What it would have said can be given by hand: "
            f"velodrome train {shlex.quote(setup.recipe)} {fields}",
            path=path,
        ) from error


def _given_tables(recipe: Any) -> dict[str, dict[str, Any]]:
    """Return the tables of a recipe: only what is not as it would be anyway, and what a table cannot be without."""
    whole, given = recipe.to_tables(), recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return {name: given[name] for name in whole if given.get(name)}


def _how(result: Tuning) -> list[str]:
    import torch

    facts, verified = result.facts, result.verified
    lines = [f"# Measured {datetime.now(UTC):%Y-%m-%d} with torch {torch.__version__} on {platform.machine()}"]
    if facts is not None:
        lines[0] += f", {facts.device}, {facts.cores} cores"
    if verified is not None:
        lines.append(f"# Checked {verified.sentence}.")
    return lines
