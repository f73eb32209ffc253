"""`velodrome data`: which data sets are known, which are here, and fetching one."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from velodrome.cli.options import Json, Quiet, Verbose
from velodrome.cli.screen import Screen, table

KNOWN = {
    "fashion-mnist": "60,000 + 10,000 pictures of clothes, 28 x 28, ten classes",
    "mnist": "60,000 + 10,000 handwritten digits, 28 x 28, ten classes",
    "diabetes": "the Pima table: 768 rows, eight numbers each, yes or no",
}

app = typer.Typer(help="List the known data sets, or fetch one.", rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def _list_by_default(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    if context.invoked_subcommand is None:
        list_data(json=json)


@app.command("list")
def list_data(json: Json = False) -> None:
    """List the known data sets."""
    hint = "\n\nFetch one: velodrome data fetch NAME    Your own table: velodrome train diabetes-mlp data.path=my.csv"
    Screen(as_json=json).answer(
        table(list(KNOWN.items())) + hint,
        {"data": [{"name": name, "summary": summary} for name, summary in KNOWN.items()]},
    )


@app.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="fashion-mnist, mnist or diabetes.", metavar="NAME")],
    root: Annotated[Path | None, typer.Option("--root", help="Where to keep it.", metavar="DIR")] = None,
    source: Annotated[str, typer.Option("--source", help="auto, local, system, download or embedded.")] = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Bring a data set here, and say from where."""
    from velodrome.errors import ArgumentError, nearest

    if name not in KNOWN:
        raise ArgumentError(f'There is no data set "{name}". {nearest(name, KNOWN)}', name=name)
    from velodrome.data.sources import fetch
    from velodrome.data.sources.image_sets import Place

    screen = Screen(as_json=json, quiet=quiet)
    if source not in get_args(Place):
        raise ArgumentError(f'--source "{source}" is unknown. {nearest(source, get_args(Place))}')
    found = fetch(name, root, source=cast("Place", source), say=screen.say)
    screen.answer(f"{name}: {found}", {"name": name, "found": str(found)})
