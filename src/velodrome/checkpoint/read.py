"""Reading weights back: hash checked before anything is trusted, and never a pickle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from velodrome.checkpoint.manifest import MANIFEST_NAME, parse_json, read_limited, read_manifest
from velodrome.checkpoint.matching import copy_into_model
from velodrome.checkpoint.scan import check_file, check_files, find_checkpoints, read_best
from velodrome.checkpoint.state import MAX_STATE_BYTES
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = [
    "Kind",
    "find_weights_file",
    "is_of_checkpoint",
    "load_file_into",
    "load_weights_into",
    "read_state",
    "read_tensors",
    "resolve_weights",
]

Kind = Literal["auto", "raw", "averaged"]

STATE_NAME = "state.json"
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}


def read_tensors(checkpoint_dir: Path, name: str = "model", *, verify: bool = True) -> dict[str, Tensor]:
    """Read one group of tensors ("model", "optimizer", ...) of a checkpoint folder.

    Args:
        checkpoint_dir: a `step-...` folder.
        name: the group, as it was given to `CheckpointStore.save`.
        verify: check the hash first; without it only the size is checked.
    Raises:
        CheckpointError: the folder, the group or its bytes are not what the manifest says.
    """
    path = _checked(Path(checkpoint_dir), f"{name}.safetensors", verify=verify)
    return decode_tensors(path)


def read_state(checkpoint_dir: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read `state.json` of a checkpoint folder: everything saved that is not a tensor.

    Raises:
        CheckpointError: the folder or the file is not what the manifest says.
    """
    path = _checked(Path(checkpoint_dir), STATE_NAME, verify=verify)
    data = read_limited(path, MAX_STATE_BYTES)
    state = parse_json(data, origin=str(path), limit=MAX_STATE_BYTES, allow_nan=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} does not hold a table. Use another checkpoint.", path=path)
    return cast("dict[str, Any]", state)


def resolve_weights(path: Path | str, which: Literal["best", "last"] = "best", kind: Kind = "auto") -> Path:
    """Find the `.safetensors` file to read for a run directory, a checkpoint folder, or such a file itself.

    The last checkpoint of a run is the newest whose hashes agree; a warning names each newer one that was
    skipped.

    Args:
        path: a run directory, a checkpoint folder or a .safetensors file.
        which: checkpoint of a run directory.
        kind: of its weights, where their average was saved beside them; "auto" is the one that the run evaluated.
    Raises:
        CheckpointError: there is none, or the one asked for is damaged.
    """
    if which not in ("best", "last"):
        raise ArgumentError(f"weights={which!r} is unknown. It is 'best' or 'last'.", argument="weights")
    if kind not in ("auto", "raw", "averaged"):
        raise ArgumentError(f"kind={kind!r} is unknown. It is 'auto', 'raw' or 'averaged'.", argument="kind")
    path = Path(path)
    if path.suffix.lower() in _PICKLE_SUFFIXES and not path.is_dir():
        raise CheckpointError(
            f"{path} is a pickle by its name. Opening one can run any program, so only .safetensors files "
            f"are read. "
            f"Turn it into one, without running what it holds: velodrome import {path}",
            path=path,
        )
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise CheckpointError(
                f"{path} is not a .safetensors file. Weights come from a run directory, a checkpoint folder "
                f"or such "
                f"a file. Give one of these.",
                path=path,
            )
        if kind != "auto":
            raise ArgumentError(
                f"kind={kind!r} was given with the file {path}, which holds one set of weights. Give the checkpoint folder or the run "
                f"directory, or leave kind out.",
                argument="kind",
            )
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Weights come from a run directory, a checkpoint folder or a "
            f".safetensors file. "
            f"Check the path, or train first: velodrome train RECIPE --out {path}.",
            path=path,
        )
    if (path / MANIFEST_NAME).exists():
        return find_weights_file(path, kind)
    inner = path / "checkpoints"
    directory = inner if inner.is_dir() else path
    folder = _find_best(directory) if which == "best" else find_last(directory)
    return find_weights_file(folder, kind)


def find_weights_file(folder: Path, kind: Kind = "auto") -> Path:
    """Return the file of a checkpoint folder that holds these weights.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    if kind == "auto":
        # A checkpoint of an older release, or one without an average, says nothing about kinds.
        has_both = "ema.safetensors" in read_manifest(folder).files
        kind = "averaged" if has_both and read_state(folder).get("evaluated_weights") == "averaged" else "raw"
    return _checked(folder, "ema.safetensors" if kind == "averaged" else "model.safetensors", verify=False)


def load_weights_into(
    model: Module, path: Path | str, *, which: Literal["best", "last"] = "best", kind: Kind = "auto"
) -> None:
    """Load weights into a model of the same shape, whatever wraps it now or wrapped it then.

    Args:
        model: changed in place, and only when every name and shape fits.
        path: a run directory, a checkpoint folder or a .safetensors file.
        which: for a run directory, the best weights or the last ones.
        kind: of the weights, see `resolve_weights`.
    Raises:
        CheckpointError: no such weights, damaged ones, or ones that do not fit; the message lists what
            differs.
    """
    load_file_into(model, resolve_weights(path, which, kind), path=path, which=which)


def load_file_into(model: Module, file: Path, *, path: Path | str, which: Literal["best", "last"]) -> None:
    """Load the weights of a file that `resolve_weights` returned.

    Whoever says which file it was loads it so: of a run under way, the path may stand for another file a moment later.

    Args:
        model: changed in place, and only when every name and shape fits.
        file: as it was returned.
        path, which: what it was resolved from.
    Raises:
        CheckpointError: the file is gone, is damaged, or does not fit.
    """
    if not file.exists() and Path(path) != file:
        raise CheckpointError(
            f"{file} is gone: since it was chosen it was removed, as a run under way does with checkpoints that it no longer keeps. "
            "Run the same again: it takes the weights that are there then.",
            path=file,
        )
    if is_of_checkpoint(file):
        try:
            _checked(file.parent, file.name, verify=True)
        except CheckpointError as error:
            if which == "last" or Path(path) in (file, file.parent):
                raise
            message = f'{error.message} Or ask for the last weights instead (weights="last").'
            raise CheckpointError(message, **error.fields) from error
    copy_into_model(model, decode_tensors(file), origin=file)


def is_of_checkpoint(file: Path) -> bool:
    """Return whether a weights file lies in a checkpoint folder, and not by itself."""
    return (file.parent / MANIFEST_NAME).is_file()


def find_last(directory: Path, *, run_id: str | None = None) -> Path:
    """Return the newest checkpoint whose hashes agree, warning about each newer one whose do not.

    Args:
        directory: the folder that holds the `step-...` folders.
        run_id: consider only this run's.
    Raises:
        CheckpointError: there is none.
    """
    skipped: list[str] = []
    for found in find_checkpoints(directory):
        problem = found.problem
        if found.manifest and run_id is not None and found.manifest.run_id != run_id:
            problem = f"{found.path} belongs to run {found.manifest.run_id}, not {run_id}."
        if found.manifest and not problem:
            try:
                check_files(found.path, found.manifest, hashes=True)
            except CheckpointError as error:
                problem = error.message
        if not problem:
            if skipped:
                warnings.warn(
                    f"{found.path} is used; newer checkpoints were skipped: {' '.join(skipped)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return found.path
        skipped.append(problem)
    reasons = f" {' '.join(skipped)}" if skipped else ""
    raise CheckpointError(
        f"{directory} holds no checkpoint that can be loaded. One needs a manifest and files with the sizes "
        f"and "
        f"hashes it lists.{reasons} Train again, or give another path.",
        path=directory,
        skipped=tuple(skipped),
    )


def _find_best(directory: Path) -> Path:
    best = read_best(directory)
    if best is None:
        raise CheckpointError(
            f"{directory} has no best.json. A best checkpoint is marked when a run evaluates as it trains. "
            f'Ask for the last weights instead (weights="last").',
            path=directory,
        )
    for found in find_checkpoints(directory):
        if found.step == best.step and not found.problem:
            return found.path
    raise CheckpointError(
        f"The best checkpoint of {directory}, step {best.step}, is missing or damaged. No other is the best "
        f"one. "
        f'Ask for the last weights instead (weights="last").',
        path=directory,
        step=best.step,
    )


def _checked(folder: Path, name: str, *, verify: bool) -> Path:
    manifest = read_manifest(folder)
    if name not in manifest.files:
        raise CheckpointError(
            f"{folder} has no {name}. It holds {', '.join(sorted(manifest.files))}. Ask for one of these.",
            path=folder,
            name=name,
        )
    check_file(folder / name, manifest.files[name], hashes=verify)
    return folder / name
