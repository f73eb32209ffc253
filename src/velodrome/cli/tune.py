"""`velodrome tune RECIPE`: what would make this recipe faster on this machine, measured, and written as a tuned recipe.

| exit code | meaning |
|---|---|
| 0 | done, whether something paid or nothing did |
| 2 | the recipe or an argument is wrong |
| 3 | the tuned recipe would take the place of a file |
| 1 | a trial of the recipe as it is failed, or the file could not be written; what was known by then is shown |
| 130 | interrupted; what was known by then is shown, and nothing was written |
| 143, 129 | told to end (SIGTERM), the terminal is gone (SIGHUP): the same |
"""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Device, Json, Overrides, Quiet, Verbose
from velodrome.cli.screen import Screen


class Numerics(StrEnum):
    """The most that a technique may do to the numbers."""

    equal = "equal"
    close = "close"
    changed = "changed"


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def tune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a .toml file.", metavar="RECIPE")],
    overrides: Overrides = None,
    minutes: Annotated[
        float,
        typer.Option("--minutes", help="That all trials may take; starting the recipe comes on top.", metavar="N"),
    ] = 3.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The tuned recipe; default: RECIPE.tuned.toml, beside the recipe.", metavar="FILE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tuned recipe that is there.")] = False,
    numerics: Annotated[
        Numerics,
        typer.Option("--numerics", help="What may happen to the numbers: nothing, rounding, or another precision."),
    ] = Numerics.changed,
    batch_size: Annotated[
        bool, typer.Option("--batch-size", help="Try larger batches too, which is another training.")
    ] = False,
    lr: Annotated[
        bool, typer.Option("--lr", help="Only look for a learning rate; --out takes a .csv file or a picture.")
    ] = False,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Only look for the largest and the fastest batch size.")
    ] = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what makes a recipe faster on this machine, and write the tuned recipe.

    Every technique that applies is tried in short trials against the recipe as it is, in processes of their own; nothing of a run is
    touched or written. Ctrl-C shows what is known so far.

    Example: velodrome tune fashion-mnist-mlp --minutes 3
    """
    from velodrome.advise.tuning.search import Search
    from velodrome.advise.tuning.setup import Setup
    from velodrome.advise.tuning.writing import choose_path, write_tuned_recipe
    from velodrome.cli.end_signals import ended_in_order
    from velodrome.cli.tune_end import show_what_is_known
    from velodrome.cli.tune_one import find_largest_batch, find_learning_rate
    from velodrome.errors import ArgumentError
    from velodrome.recipes.read import load_recipe

    screen = Screen(as_json=json, quiet=quiet)
    changes = (*(overrides or []), *([f"train.device={device}"] if device else []))
    loaded = load_recipe(recipe, changes)
    if lr and largest_batch:
        raise ArgumentError("--lr and --largest-batch are two questions. Ask them one after the other.")
    if lr or largest_batch:
        question = "--lr" if lr else "--largest-batch"
        of_trials = {"minutes": "--minutes", "numerics": "--numerics", "batch_size": "--batch-size"}
        of_files = {} if lr else {"out": "--out", "overwrite": "--overwrite"}
        unused = [flag for name, flag in (of_trials | of_files).items() if _was_given(context, name)]
        if unused:
            writes = "" if lr else ", and writes no file"
            raise ArgumentError(
                f"{question} asks one question, in which {' and '.join(unused)} mean{'s' * (len(unused) == 1)} nothing: it makes no trials of "
                f"techniques{writes}. Leave {'it' if len(unused) == 1 else 'them'} out, or ask without {question}."
            )
    if lr:
        find_learning_rate(loaded, screen, out, recipe=recipe, changes=changes, overwrite=overwrite)
        return
    if largest_batch:
        find_largest_batch(loaded, screen)
        return
    if not minutes > 0:
        raise ArgumentError(f"--minutes {minutes:g} leaves no time for a trial. Give a number above 0, such as 3.")
    path = choose_path(recipe, out, overwrite=overwrite)
    setup = Setup(recipe=recipe, overrides=changes)
    search = Search(
        setup, loaded.recipe, seconds=60 * minutes, numerics=numerics, batch_size=batch_size, say=screen.say
    )
    screen.say(
        f"Recipe: {loaded.name}; trials take about {minutes:g} min after the start. Ctrl-C shows what is known so far."
    )
    with ended_in_order() as signals:
        try:
            result = search.run()
            if result.is_worth_it and not result.is_interrupted:
                write_tuned_recipe(path, setup, result)
                result.written = str(path)
        except Exception as error:
            show_what_is_known(search.result, error, screen)
            raise
    screen.answer("\n".join(result.lines()), result.to_json())
    if result.is_interrupted:
        raise typer.Exit(signals.exit_code)
