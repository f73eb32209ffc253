"""The way of every export: made beside its target, read back, compared with the model, and only then put in place."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import RefusedError
from velodrome.recipes.export.comparing import Agreement, compare, flatten
from velodrome.recipes.export.example import SIZES
from velodrome.recipes.export.metadata import METADATA_NAME, describe_inputs, describe_outputs, to_text
from velodrome.record.atomic import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from velodrome.recipes.export.example import Example

__all__ = ["Written", "check_target", "write_program", "write_weights"]

_NUM_EPS = {"pt2": 100.0, "onnx": 1000.0}
"""How many eps, 1.2e-7 of float32: 1.2e-5 for a program that calls the same kernels in the same order, which is seen to give the same bits;
1.2e-4 for ONNX Runtime, which has kernels of its own and sums in another order."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that was put in place.

    Args:
        num_bytes: its size.
        sha256: its hash.
        agreement: with the model, over all sizes of batches.
        tried: the batches that it was run on, in words; empty for weights, which are compared one by one.
        metadata: that stand in it.
    """

    num_bytes: int
    sha256: str
    agreement: Agreement
    tried: str = ""
    metadata: Mapping[str, Any]


def check_target(target: Path, source: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is worked on.

    Args:
        target: what is to be written.
        source: the weights that it is made of.
        force: an existing file may be written over; never the source.
    Raises:
        RefusedError: it exists, or its folder does not.
    """
    if target.is_dir() or (target.exists() and target.samefile(source)):
        what = "is a folder" if target.is_dir() else "is the file that is exported"
        raise RefusedError(f"{target} {what}. Give another --out.", path=target)
    refuse_existing(target, force=force)
    if not target.parent.is_dir():
        raise RefusedError(
            f"{target} cannot be written: there is no folder {target.parent}. Make it, or give another --out.",
            path=target,
        )


def write_weights(tensors: dict[str, Tensor], target: Path, metadata: Mapping[str, Any], *, force: bool) -> Written:
    """Write weights as safetensors.

    Raises:
        RefusedError: the file cannot be written, or does not hold what it should.
    """
    from velodrome.recipes.export.weights_file import compare_weights, save_weights

    def write(path: Path) -> None:
        save_weights(tensors, path, {METADATA_NAME: to_text(metadata)})

    return _put_in_place(target, write, lambda path: compare_weights(tensors, path), metadata, force=force)


def write_program(
    model: nn.Module,
    example: Example,
    target: Path,
    metadata: Mapping[str, Any],
    *,
    format: Literal["pt2", "onnx"],
    instead: str,
    force: bool,
) -> Written:
    """Write a model as a program that takes any number of samples.

    Args:
        model: on the CPU, in eval mode.
        example: inputs of it.
        target: the file.
        metadata: of it, but for what is found out here: inputs and outputs.
        format: of the file.
        instead: a command that needs no program.
        force: an existing file is written over.
    Raises:
        RefusedError: the model cannot be traced, or the file gives other outputs than it.
    """
    from velodrome.recipes.export import onnx_file, program

    example = example.in_order_of(model)
    batches = {size: example.of_size(size) for size in SIZES}
    expected = {size: _run(model, batch, size) for size, batch in batches.items()}
    traced = program.trace(model, batches[SIZES[0]], instead=instead)
    metadata = {
        **metadata,
        "operators": program.foreign_operators(traced),
        "inputs": describe_inputs(model, example),
        "outputs": describe_outputs(expected, str(metadata.get("loss", ""))),
    }
    text = to_text(metadata)

    def write(path: Path) -> None:
        if format == "pt2":
            program.save_program(traced, path, text)
            return
        names = {"inputs": list(example.named(model)), "outputs": list(expected[SIZES[0]])}
        onnx_file.save_onnx(traced, path, text, **names, instead=instead)

    def check(path: Path) -> Agreement:
        run, found = program.read_program(path) if format == "pt2" else onnx_file.read_onnx(path, model)
        if found != text:
            return Agreement(largest=0.0, tolerance=0.0, problem="What stands in it about the model came back changed.")
        return _compare_all(run, batches, expected, num_eps=_NUM_EPS[format])

    written = _put_in_place(target, write, check, metadata, force=force)
    sizes = f"{', '.join(map(str, SIZES[:-1]))} and {SIZES[-1]} samples"
    return replace(written, tried=f"{sizes} ({example.origin or 'drawn ones'})")


def _run(model: nn.Module, batch: Example, size: int) -> dict[str, Tensor]:
    try:
        outputs = flatten(batch.run(model))
    except Exception as error:  # the user's model: anything
        raise RefusedError(
            f"The {type(model).__name__} itself fails on {size} samples of inputs alone: {type(error).__name__}: {error} "
            "Exported are models that take inputs without targets, and any number of samples. Or use --format safetensors."
        ) from error
    if not outputs:
        raise RefusedError(
            f"The {type(model).__name__} returns no tensor for inputs alone, so there is nothing to export. Use --format safetensors."
        )
    return {name: tensor.clone() for name, tensor in outputs.items()}


def _compare_all(
    run: Callable[[Example], dict[str, Tensor]],
    batches: Mapping[int, Example],
    expected: Mapping[int, dict[str, Tensor]],
    *,
    num_eps: float,
) -> Agreement:
    """Run a file on every batch; the worst one counts."""
    found: list[Agreement] = []
    for size, batch in batches.items():
        try:
            outputs = run(batch)
        except Exception as error:  # of whatever runs the file
            text = str(error).strip().partition("\n")[0].rstrip(".")
            return Agreement(largest=0.0, tolerance=0.0, problem=f"It fails on {size} samples: {text}.")
        one = compare(expected[size], outputs, num_eps=num_eps)
        if one.problem:
            return replace(one, problem=f"With {size} samples: {one.problem}")
        found.append(one)
    return max(found, key=lambda one: one.ratio)


def _put_in_place(
    target: Path,
    write: Callable[[Path], None],
    check: Callable[[Path], Agreement],
    metadata: Mapping[str, Any],
    *,
    force: bool,
) -> Written:
    # With the ending of its format, which torch.export.save looks at; in the same folder, so that it can be moved in one step.
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        agreement = check(temporary)
        if agreement.problem:
            raise RefusedError(
                f"The file that was made does not give what the model gives. {agreement.problem} It was removed, and nothing was put at "
                f"{target}. Export another format."
            )
        with temporary.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        num_bytes = temporary.stat().st_size
        _move(temporary, target, force=force)
    except OSError as error:
        raise RefusedError(
            f"{target} cannot be written: {error.strerror or error}. Give another --out.", path=target
        ) from error
    finally:
        with suppress(OSError):  # what went wrong is told above
            temporary.unlink(missing_ok=True)
    return Written(num_bytes=num_bytes, sha256=digest, agreement=agreement, metadata=metadata)


def _move(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename never over a file that came up meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(17, "File exists") from None
        os.replace(temporary, target)
