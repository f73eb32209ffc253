"""`velodrome eject`: a recipe becomes one plain PyTorch script that needs no Velodrome."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Json, Overrides, Verbose
from velodrome.cli.screen import Screen, write_quietly


def eject(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a .toml file.", metavar="RECIPE")],
    overrides: Overrides = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A new file for the script; - is the screen.", metavar="FILE")
    ] = "-",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a recipe as one plain PyTorch script.

    It imports nothing of velodrome, reads the same files, and prints the same losses, to the last bit on a CPU.

    Example: velodrome eject mnist-mlp train.epochs=2 --output mnist.py
    """
    from velodrome.recipes.build import build
    from velodrome.recipes.eject import eject as write_script
    from velodrome.recipes.eject.refuse import check_can_be_ejected
    from velodrome.recipes.read import load_recipe

    _refuse_taken(output)
    loaded = load_recipe(recipe, overrides or [])
    check_can_be_ejected(loaded.recipe)  # before data are read, which may take long
    # The screen may be the file: what is said about the data goes beside it.
    ready = build(loaded, say=lambda line: write_quietly(f"Data: {line}", sys.stderr))
    text = write_script(ready, source=recipe, overrides=overrides or [])
    screen = Screen(as_json=json)
    if output == "-":
        screen.answer(text.removesuffix("\n"), {"script": text})
        return
    _write(Path(output), text)
    screen.answer(f"Wrote {output}.\nRun it: python {shlex.quote(output)}", {"output": output, "script": text})


def _refuse_taken(output: str) -> None:
    from velodrome.errors import RefusedError

    path = Path(output)
    if output != "-" and (path.exists() or path.is_symlink()):
        raise RefusedError(f"{output} exists already, so nothing was written. Give another name with --output.")


def _write(path: Path, text: str) -> None:
    from velodrome.errors import RefusedError

    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:  # "x": never over a file made meanwhile
            file.write(text)
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be written: {error.strerror}. Give another file with --output.", path=path
        ) from error
