"""`velodrome import`: weights that another program saved with torch.save become a .safetensors file."""

# ruff: noqa: TC001, TC003  (typer reads the annotations)

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Json, Quiet, Verbose
from velodrome.cli.screen import Screen


def import_weights(
    weights: Annotated[
        Path, typer.Argument(help="A .pt, .pth, .bin, .ckpt or .safetensors file of somebody's.", metavar="WEIGHTS")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="The file to write; default: the same name.", metavar="FILE.safetensors")
    ] = None,
    key: Annotated[
        str, typer.Option("--key", help="The entry that holds the weights, if there are several.", metavar="NAME")
    ] = "",
    strip: Annotated[
        str, typer.Option("--strip", help='A prefix to take off every name, such as "model.".', metavar="PREFIX")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn weights of torch.save into a .safetensors file, without running anything that they hold.

    The prefixes of DistributedDataParallel and torch.compile are taken off.

    Example: velodrome import resnet.pt --to resnet.safetensors
    """
    from velodrome.checkpoint.files import write_atomically
    from velodrome.checkpoint.foreign import read_foreign_weights
    from velodrome.checkpoint.manifest import describe
    from velodrome.checkpoint.tensors import encode_tensors
    from velodrome.errors import ArgumentError, RefusedError

    screen = Screen(as_json=json, quiet=quiet, answer_matters=False)
    target = weights.with_suffix(".safetensors") if to is None else to
    if target.suffix.lower() != ".safetensors":
        raise ArgumentError(f"--to {target} does not end in .safetensors, which is what is written. Give such a name.")
    if target.exists() and (not force or target.samefile(weights)):
        hint = (
            "Give another --to." if weights.exists() and target.samefile(weights) else "Give another --to, or --force."
        )
        raise RefusedError(f"{target} exists already. {hint}", path=target)
    tensors = read_foreign_weights(weights, key=key, strip=strip)
    data = encode_tensors(tensors)
    try:
        write_atomically(target, data)
    except OSError as error:
        raise RefusedError(f"{target} cannot be written: {error.strerror}. Give another --to.", path=target) from error
    record = describe(data)
    num_numbers = sum(tensor.numel() for tensor in tensors.values())
    screen.answer(
        f"Wrote {target}: {len(tensors):,} tensors, {num_numbers:,} numbers, {record.num_bytes:,} bytes, SHA-256 {record.sha256}.\n"
        f"Next: velodrome train RECIPE --weights {shlex.quote(str(target))}    "
        f"or in Python: velodrome.load_model({str(target)!r}, model)",
        {
            "weights": str(target),
            "tensors": len(tensors),
            "numbers": num_numbers,
            "bytes": record.num_bytes,
            "sha256": record.sha256,
        },
    )
