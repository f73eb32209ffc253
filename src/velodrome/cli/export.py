"""`velodrome export`: trained weights become one file that is used without Velodrome."""

# ruff: noqa: TC003  (typer reads the annotations)

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from signal import SIGINT
from typing import Annotated

import typer

from velodrome.cli.options import Json, Kind, Overrides, Quiet, RecipeOption, Run, Verbose, Weights, WeightsKind, Which
from velodrome.cli.screen import Screen


class Format(StrEnum):
    """What kind of file; also the ending of its name."""

    pt2 = "pt2"
    onnx = "onnx"
    safetensors = "safetensors"


def export(
    run: Run,
    overrides: Overrides = None,
    format: Annotated[
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
    from velodrome.cli.end_signals import ended_in_order
    from velodrome.cli.stopping import StoppedRun
    from velodrome.recipes.export.of_run import Order, default_target, export_run
    from velodrome.recipes.export.onnx_file import check_onnx
    from velodrome.recipes.export.wording import describe_program, describe_use
    from velodrome.recipes.export.write import check_target
    from velodrome.recipes.trained_model import find_weights

    screen = Screen(as_json=json, quiet=quiet, answer_matters=False)
    file = find_weights(run, weights.value, kind.value)
    chosen = _choose(format, out)
    if chosen is Format.onnx:
        check_onnx()
    target = default_target(file, chosen) if out is None else out
    check_target(target, file, force=force)
    screen.say(f"Weights: {file}")
    order = Order(
        run=run,
        which=weights.value,
        weights_kind=kind.value,
        file=file,
        format=chosen.value,
        target=target,
        force=force,
        recipe=recipe,
        overrides=overrides or (),
    )
    with ended_in_order() as told:
        try:
            written = export_run(order, say=screen.say_data)
        except KeyboardInterrupt:
            if told.number == SIGINT:
                raise
            raise StoppedRun(f"Told to end; nothing was put at {target}.", code=told.exit_code) from None
    if chosen is not Format.safetensors:
        screen.say("\n".join(describe_program(written)))
    metadata, agreement = written.metadata, written.agreement
    screen.answer(
        f"Wrote {target}: {chosen}, {written.num_bytes:,} bytes, SHA-256 {written.sha256}.\n"
        f"Use it: {describe_use(written, target, chosen)}",
        {
            "path": str(target),
            "format": chosen.value,
            "bytes": written.num_bytes,
            "sha256": written.sha256,
            "step": metadata["step"],
            "weights": str(file),
            "weights_kind": metadata["weights_kind"],
            "largest_difference": agreement.largest,
            "tolerance": agreement.tolerance,
            **{key: metadata[key] for key in ("inputs", "outputs", "operators", "preparation") if key in metadata},
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
            else "in one of .pt2, .onnx, .safetensors, which says the format"
        )
        raise ArgumentError(f"--out {out} ends in {out.suffix or 'nothing'}. It must end {rule}.", argument="out")
    return wanted
