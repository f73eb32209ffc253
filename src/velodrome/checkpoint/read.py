"""Weights back from disk: verified by hash before they are trusted, and never by unpickling anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from velodrome.checkpoint.manifest import MANIFEST_NAME, read_manifest
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.store import find_steps, read_best_step
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_weights_into", "read_tensors", "resolve_weights"]

Which = Literal["best", "last"]

_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
_MAX_LISTED = 8


def read_tensors(checkpoint_dir: Path, name: str = "model", *, verify: bool = True) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint.

    Args:
        checkpoint_dir: a `step-...` folder.
        name: "model", "optimizer", ...
        verify: compare the file's hash with the manifest first.
    Raises:
        CheckpointError: no such file, or not the bytes that were saved.
    """
    path = checkpoint_dir / f"{name}.safetensors"
    record = read_manifest(checkpoint_dir).files.get(path.name)
    if record is None:
        raise CheckpointError(f"{checkpoint_dir} holds no {path.name}. Use another checkpoint.", path=path)
    if verify:
        _verify(path, record.sha256)
    return decode_tensors(path)


def resolve_weights(path: Path | str, which: Which = "best") -> Path:
    """Return the file of weights that a path means.

    Args:
        path: a run directory, its `checkpoints`, one checkpoint folder, or a .safetensors file.
        which: "best" (the last one when none was marked) or "last", for a run directory.
    Raises:
        CheckpointError: nothing there can be read as weights; says what to give instead.
        ArgumentError: `which` is neither.
    """
    path = Path(path)
    if which not in ("best", "last"):
        raise ArgumentError(f'weights={which!r} is unknown. It is "best" or "last".')
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(
            f"{path} is a {path.suffix} file, which may hold a pickle: reading one can run any program. Only safetensors "
            f"are read. Convert weights that you trust with torch.load(..., weights_only=True) and safetensors.torch.save_file.",
            path=path,
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path} is no .safetensors file. Give a run directory, a checkpoint folder or weights as safetensors.",
                path=path,
            )
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist. Give a run directory, a checkpoint folder or a .safetensors file; `velodrome train` prints its own.",
            path=path,
        )
    if (path / MANIFEST_NAME).exists():
        return path / "model.safetensors"
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    skipped: list[str] = []
    valid = find_steps(directory, skipped.append)
    best = read_best_step(directory) if which == "best" else None
    if best is not None:
        folder = dict(valid).get(best)
        if folder is None:
            raise CheckpointError(
                f'{directory} marks step {best} as the best, but that checkpoint is missing or damaged. Use the newest one: weights="last". '
                + " ".join(skipped),
                path=directory,
            )
        return folder / "model.safetensors"
    if not valid:
        details = f" {' '.join(skipped)}" if skipped else ""
        raise CheckpointError(
            f"{path} holds no checkpoint. Give the directory of a run that has saved one.{details}", path=path
        )
    return valid[-1][1] / "model.safetensors"


def load_weights_into(model: nn.Module, path: Path | str, *, which: Which = "best") -> None:
    """Load weights into a model whose parameters and buffers must be exactly those saved.

    Args:
        model: on any device, wrapped or not; changed only when everything fits.
        path: see `resolve_weights`.
        which: "best" or "last".
    Raises:
        CheckpointError: damaged, or another model; lists what is missing, unexpected or of another shape.
    """
    file = resolve_weights(path, which)
    has_manifest = (file.parent / MANIFEST_NAME).exists()
    tensors = read_tensors(file.parent) if has_manifest else decode_tensors(file)
    own = model.state_dict()
    clean = clean_names(own)
    differences = _differences(tensors, {clean[name]: tensor for name, tensor in own.items()})
    if differences:
        raise CheckpointError(
            f"{file} does not fit this {type(model).__name__}: {'; '.join(differences)}. Build the model with which it was trained.",
            path=file,
        )
    model.load_state_dict({name: tensors[clean[name]] for name in own})


def _verify(path: Path, sha256: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Use another checkpoint.", path=path) from error
    if found != sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found[:12]}..., its manifest says {sha256[:12]}.... Use another checkpoint, "
            f'or weights="last" when it is the best one.',
            path=path,
        )


def _differences(saved: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    groups = {
        "missing in the file": [name for name in own if name not in saved],
        "not in the model": [name for name in saved if name not in own],
        "of another shape": [
            f"{name} {tuple(saved[name].shape)} -> {tuple(own[name].shape)}"
            for name in own
            if name in saved and saved[name].shape != own[name].shape
        ],
    }
    lines = []
    for what, names in groups.items():
        if names:
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            lines.append(f"{what}: {', '.join(names[:_MAX_LISTED])}{more}")
    return lines
