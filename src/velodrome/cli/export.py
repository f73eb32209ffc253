"""`velodrome export`: trained weights become one file that is used without Velodrome."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velodrome.cli.options import Json, Kind, Overrides, Quiet, RecipeOption, Run, Verbose, Weights, WeightsKind, Which
from velodrome.cli.screen import Screen

if TYPE_CHECKING:
    from velodrome.recipes.export.write import Written


class Format(StrEnum):
    """What kind of file; also the ending of its name."""

    pt2 = "pt2"
    onnx = "onnx"
    safetensors = "safetensors"


def export(
    run: Run,
    overrides: Overrides = None,
    kind_of_file: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="pt2: a torch.export program; onnx; safetensors: weights alone. Default: as --out ends, or pt2.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default: the run's name, here.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    recipe: RecipeOption = None,
    weights: Weights = Which.best,
    kind: Kind = WeightsKind.auto,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained model as one file that needs no Velodrome.

    The file is read back and compared with the model before it is put in place.

    Example: velodrome export runs/my-run --format pt2 --out model.pt2
    """
    from velodrome.recipes.export.facts import find_home
    from velodrome.recipes.export.write import check_target
    from velodrome.recipes.trained_model import find_weights

    screen = Screen(as_json=json, quiet=quiet, answer_matters=False)
    file = find_weights(run, weights.value, kind.value)
    chosen = _choose(kind_of_file, out)
    if chosen is Format.onnx:
        from velodrome.recipes.export.onnx_file import check_onnx

        check_onnx()
    target = Path(f"{(find_home(file) or file.with_suffix('')).name}.{chosen}") if out is None else out
    check_target(target, file, force=force)
    screen.say(f"Weights: {file}")
    if chosen is Format.safetensors:
        written = _export_weights(run, file, target, recipe, overrides, force=force)
        use = f"Use it: model.load_state_dict(safetensors.torch.load_file({str(target)!r}))"
    else:
        instead = f"velodrome export {shlex.quote(str(run))} --format safetensors"
        given = (str(recipe) if recipe else None, overrides or [], weights.value, kind.value)
        written = _export_program(run, file, target, given, chosen.value, instead, screen, force=force)
        use = {
            Format.pt2: f"Use it: torch.export.load({str(target)!r}).module()(inputs)",
            Format.onnx: f"Use it: onnxruntime.InferenceSession({str(target)!r}).run(None, {{name: array}})",
        }[chosen]
    facts, comparison = written.facts, written.comparison
    screen.answer(
        f"Wrote {target}: {chosen}, {written.num_bytes:,} bytes, SHA-256 {written.sha256}.\n{use}",
        {
            "path": str(target),
            "format": chosen.value,
            "bytes": written.num_bytes,
            "sha256": written.sha256,
            "step": facts["step"],
            "weights": str(file),
            "kind": facts["weights"],
            "largest_difference": comparison.largest,
            "tolerance": comparison.tolerance,
            "inputs": facts.get("inputs"),
            "outputs": facts.get("outputs"),
            "preparation": facts.get("preparation"),
        },
    )


def _choose(wanted: Format | None, out: Path | None) -> Format:
    """Return the format that was asked for, or that the file's name ends in."""
    from velodrome.errors import ArgumentError

    if out is None:
        return wanted or Format.pt2
    ending = out.suffix.lower().removeprefix(".")
    if wanted is None and ending in list(Format):
        return Format(ending)
    if wanted is None or ending != wanted.value:
        rule = (
            f"in .{wanted}, as --format says"
            if wanted
            else "in one of .pt2, .onnx, .safetensors, or come with a --format"
        )
        raise ArgumentError(f"--out {out} ends in {out.suffix or 'nothing'}. It must end {rule}.", argument="out")
    return wanted


def _export_weights(
    run: Path, file: Path, target: Path, recipe: str | None, overrides: list[str] | None, *, force: bool
) -> Written:
    """Weights need neither the model's code nor the data: a recipe is only written down."""
    from velodrome.recipes.export.facts import is_of_checkpoint
    from velodrome.recipes.export.gather import gather_facts
    from velodrome.recipes.export.weights_file import read_weights
    from velodrome.recipes.export.write import write_weights
    from velodrome.recipes.trained_model import RunNotes, find_run, load_recipe_for, read_notes

    # A recipe in a folder above a file that lies by itself says nothing about it.
    of_run = is_of_checkpoint(file) and find_run(file) is not None
    loaded = load_recipe_for(run, recipe, overrides or []) if of_run or recipe is not None else None
    notes = read_notes(run) if of_run else RunNotes()
    facts = gather_facts(file, None if loaded is None else loaded.recipe, notes)
    return write_weights(read_weights(file), target, facts, force=force)


def _export_program(
    run: Path,
    file: Path,
    target: Path,
    given: tuple[str | None, list[str], Any, Any],
    chosen: str,
    instead: str,
    screen: Screen,
    *,
    force: bool,
) -> Written:
    from velodrome.recipes.export.facts import show_shape
    from velodrome.recipes.export.gather import gather_facts, prepare_model
    from velodrome.recipes.export.write import write_program
    from velodrome.recipes.trained_model import load_recipe_for, load_weights, read_notes

    recipe, overrides, which, kind = given
    loaded = load_recipe_for(run, recipe, overrides)
    notes = read_notes(run)
    model, example = prepare_model(loaded, notes, say=screen.say_data)
    load_weights(model, run, which, kind)
    facts = gather_facts(file, loaded.recipe, notes)
    written = write_program(model.eval(), example, target, facts, kind=chosen, instead=instead, force=force)
    for title, entries in (("Input", written.facts["inputs"]), ("Output", written.facts["outputs"])):
        for entry in entries:
            seen = (
                f", {entry['lowest']:.4g} to {entry['highest']:.4g} in {entry['seen_in']}" if "seen_in" in entry else ""
            )
            meaning = f": {entry['meaning']}" if "meaning" in entry else ""
            screen.say(f"{title} {entry['name']}: {entry['dtype']} {show_shape(entry['shape'])}{seen}{meaning}")
    screen.say(f"The file does not prepare its inputs, it takes what the model takes: {facts['preparation']['words']}.")
    if facts["precision"] != "fp32":
        screen.say(
            f"The run computed in {facts['precision']}; the file computes in the precision of the saved weights."
        )
    comparison = written.comparison
    screen.say(
        f"Checked: read back and run on 4, 1 and 3 samples ({example.origin or 'drawn ones'}); it differs from the model by "
        f"{comparison.largest:.3g} at most, {comparison.tolerance:.3g} is allowed."
    )
    return written
