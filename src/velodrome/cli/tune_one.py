"""`velodrome tune RECIPE --lr` and `--largest-batch`: one question about a recipe, answered on a copy of it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from velodrome.cli.tune_end import answer_with_error
from velodrome.errors import ArgumentError, RefusedError, VelodromeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from velodrome.cli.screen import Screen
    from velodrome.recipes.build import Ready
    from velodrome.recipes.read import LoadedRecipe

__all__ = ["find_largest_batch", "find_learning_rate"]

_ENDINGS = (".csv", ".png", ".svg", ".pdf")


def find_learning_rate(
    loaded: LoadedRecipe, screen: Screen, out: Path | None, *, recipe: str, changes: Sequence[str] = (), overwrite: bool
) -> None:
    """Make a range test with a recipe, and show what it suggests.

    Args:
        loaded: the recipe.
        screen: shows the answer.
        out: a .csv file, or a picture; None writes nothing.
        recipe: as the user called it.
        changes: of its fields, as the user wrote them.
        overwrite: replace what is there.
    Raises:
        ArgumentError: the file has another ending, or its folder is not there.
        RefusedError: it is there already, or cannot be written.
    """
    from velodrome.advise.lr_finder import find_lr
    from velodrome.advise.outputs import check_place
    from velodrome.recipes.loaders import training_loader

    if out is not None and out.suffix not in _ENDINGS:
        raise ArgumentError(
            f"--out {out} is neither a table nor a picture. Give a name that ends in {', '.join(_ENDINGS)}."
        )
    if out is not None and not overwrite and out.exists():
        raise RefusedError(
            f"{out} exists already, so nothing was tried. Give another name with --out, or --overwrite.", path=out
        )
    if out is not None:
        check_place(out)
    ready = _build(loaded, screen)
    curve = find_lr(ready.model, training_loader(ready.data, ready.recipe), **_arguments(ready))
    lr, failure = curve.suggestion, None
    if out is not None and curve.rates:
        try:
            curve.to_csv(out) if out.suffix == ".csv" else curve.plot(out)
        except VelodromeError as error:  # it could be written before the test: the answer is shown all the same
            failure = error
    lines = [curve.sentence, f"The recipe has {_number(loaded.recipe.optimizer.lr)}."]
    if lr is not None:
        others = [each for each in changes if not each.startswith("optimizer.lr=")]
        lines.append(f"Try it: {shlex.join(['velodrome', 'train', recipe, *others, f'optimizer.lr={lr:.2g}'])}")
    is_written = out is not None and bool(curve.rates) and failure is None
    lines += [f"Written: {out}"] if is_written else []
    data = {
        "suggestion": lr,
        "steepest": curve.steepest,
        "lowest_tenth": curve.lowest_tenth,
        "diverged": curve.has_diverged,
        "rates": list(curve.rates),
        "losses": list(curve.losses),
        "smoothed": list(curve.smoothed),
        "recipe_lr": loaded.recipe.optimizer.lr,
        "written": str(out) if is_written else None,
    }
    if failure is None:
        screen.answer("\n".join(lines), data)
        return
    error = VelodromeError(failure.message, path=out)  # no wrong argument: the place was good before the test
    answer_with_error("\n".join(lines), data, error, screen)
    raise error from failure


def find_largest_batch(loaded: LoadedRecipe, screen: Screen) -> None:
    """Train a few steps with larger and larger batches, and show which is enough and which is the largest."""
    from velodrome.advise.batch_size import find_batch_size
    from velodrome.recipes.loaders import loader_arguments

    ready = _build(loaded, screen)
    loader_args = loader_arguments(ready.recipe, training=True)
    found = find_batch_size(ready.model, ready.data.train, loader_args=loader_args, **_arguments(ready))
    rows = [
        f"{each.batch_size:>8,}  {each.samples_per_s:>12,.0f} samples/s"
        + ("" if each.memory_bytes is None else f"  {each.memory_bytes / 1e6:>8,.0f} MB")
        for each in found.measured
    ]
    data = {
        "largest": found.largest,
        "fastest": found.fastest,
        "limit": found.limit,
        "measured": [vars(each) for each in found.measured],
        "recipe_batch_size": loaded.recipe.train.batch_size,
    }
    screen.answer("\n".join([*rows, found.sentence, f"The recipe has {loaded.recipe.train.batch_size}."]), data)


def _build(loaded: LoadedRecipe, screen: Screen) -> Ready:
    from velodrome.recipes.build import build

    return build(loaded, say=screen.say_data)


def _arguments(ready: Ready) -> dict[str, Any]:
    """Return the recipe's arguments of a trainer, without those for what it writes."""
    from velodrome.advise.finders import WRITES

    return {name: value for name, value in ready.trainer_arguments.items() if name not in WRITES}


def _number(lr: float | None) -> str:
    return "none: its optimizer's own" if lr is None else f"lr {lr:g}"
