"""`velodrome recipes`: what can be trained without writing anything."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

from typing import Annotated

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen, table

app = typer.Typer(help="List the built-in recipes, or show one.", rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def _list_by_default(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    if context.invoked_subcommand is None:
        list_recipes(json=json)


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """List the built-in recipes."""
    from velodrome.recipes.read import builtin_names, builtin_summary

    found = [(name, builtin_summary(name)) for name in builtin_names()]
    hint = "\n\nRun one: velodrome train NAME    See one: velodrome recipes show NAME"
    Screen(as_json=json).answer(
        table(found) + hint, {"recipes": [{"name": name, "summary": summary} for name, summary in found]}
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The recipe's name.", metavar="NAME")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print a built-in recipe; save it to a .toml file to change it."""
    import tomllib

    from velodrome.recipes.read import builtin_text

    text = builtin_text(name)
    Screen(as_json=json).answer(text.rstrip("\n"), {"name": name, "tables": tomllib.loads(text)})
