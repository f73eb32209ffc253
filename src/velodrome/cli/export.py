"""`velodrome export`: trained weights become one file that is used without Velodrome."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from velodrome.cli.options import Json, Kind, Overrides, Quiet, RecipeOption, Run, Verbose, Weights, WeightsKind, Which
from velodrome.cli.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.recipes.export.write import Written


_USES = {
    "pt2": "torch.export.load({!r}).module()({})",
    "onnx": "onnxruntime.InferenceSession({!r}).run(None, {{{}}})",
    "safetensors": "model.load_state_dict(safetensors.torch.load_file({!r}))",
}


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
    wanted = _Wanted(run=run, file=file, target=target, recipe=recipe, overrides=overrides or [], force=force)
    if chosen is Format.safetensors:
        written = _export_weights(wanted)
    else:
        written = _export_program(wanted, chosen, weights.value, kind.value, screen)
        _show_program(written, screen)
    facts, agreement = written.facts, written.agreement
    screen.answer(
        f"Wrote {target}: {chosen}, {written.num_bytes:,} bytes, SHA-256 {written.sha256}.\nUse it: {_USES[chosen].format(str(target), _call(facts.get('inputs', ()), chosen))}",
        {
            "path": str(target),
            "format": chosen.value,
            "bytes": written.num_bytes,
            "sha256": written.sha256,
            "step": facts["step"],
            "weights": str(file),
            "kind": facts["weights"],
            "largest_difference": agreement.largest,
            "tolerance": agreement.tolerance,
            **{key: facts[key] for key in ("inputs", "outputs", "operators", "preparation") if key in facts},
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What both kinds of export are asked for."""

    run: Path
    file: Path
    target: Path
    recipe: str | None
    overrides: list[str]
    force: bool


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
            else "in one of .pt2, .onnx, .safetensors, which says the format"
        )
        raise ArgumentError(f"--out {out} ends in {out.suffix or 'nothing'}. It must end {rule}.", argument="out")
    return wanted


def _export_weights(wanted: _Wanted) -> Written:
    """Write weights: they need neither the model's code nor the data; a recipe is only written down."""
    from velodrome.recipes.export.facts import is_of_checkpoint
    from velodrome.recipes.export.gather import gather_facts
    from velodrome.recipes.export.weights_file import read_weights
    from velodrome.recipes.export.write import write_weights
    from velodrome.recipes.trained_model import RunNotes, find_run, load_recipe_for, read_notes

    # A recipe in a folder above a file that lies by itself says nothing about it.
    of_run = is_of_checkpoint(wanted.file) and find_run(wanted.file) is not None
    known = of_run or wanted.recipe is not None
    loaded = load_recipe_for(wanted.run, wanted.recipe, wanted.overrides) if known else None
    notes = read_notes(wanted.run) if of_run else RunNotes()
    facts = gather_facts(wanted.file, None if loaded is None else loaded.recipe, notes)
    return write_weights(read_weights(wanted.file), wanted.target, facts, force=wanted.force)


def _export_program(
    wanted: _Wanted,
    chosen: Format,
    which: Literal["best", "last"],
    kind: Literal["auto", "raw", "averaged"],
    screen: Screen,
) -> Written:
    """Build the model, fill in its weights, and write it as a program."""
    from velodrome.recipes.export.gather import gather_facts, prepare_model
    from velodrome.recipes.export.write import write_program
    from velodrome.recipes.trained_model import load_recipe_for, load_weights, read_notes

    loaded = load_recipe_for(wanted.run, wanted.recipe, wanted.overrides)
    notes = read_notes(wanted.run)
    same = [
        f" --{name} {value}"
        for name, value, default in (("weights", which, "best"), ("kind", kind, "auto"))
        if value != default
    ]
    model, example = prepare_model(loaded, notes, say=screen.say_data)
    load_weights(model, wanted.run, which, kind)
    return write_program(
        model.eval().requires_grad_(False),  # so that what the file gives can be read as it is
        example,
        wanted.target,
        gather_facts(wanted.file, loaded.recipe, notes),
        kind=chosen.value,
        instead=f"velodrome export {shlex.quote(str(wanted.run))} --format safetensors{''.join(same)}",
        force=wanted.force,
    )


def _call(inputs: Sequence[Mapping[str, Any]], chosen: Format) -> str:
    """Return how a file is given its inputs."""
    if chosen is Format.onnx:
        return ", ".join(f"{each['name']!r}: {each['name']}" for each in inputs)
    return ", ".join(
        f"{each['name']}={each['name']}" if each["given"] == "by name" else each["name"] for each in inputs
    )


def _show_program(written: Written, screen: Screen) -> None:
    """Say what goes in and out, how inputs are prepared, and how the file was checked."""
    from velodrome.recipes.export.facts import show_shape

    facts, agreement = written.facts, written.agreement
    for title, entries in (("Input", facts["inputs"]), ("Output", facts["outputs"])):
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
    if facts["operators"]:
        screen.say(
            f"It calls {', '.join(facts['operators'])}: import the package that registers them before the file is loaded."
        )
    screen.say(
        f"Checked: read back and run on {written.tried}; it differs from the model by {agreement.largest:.3g} at most, "
        f"{agreement.tolerance:.3g} is allowed."
    )
