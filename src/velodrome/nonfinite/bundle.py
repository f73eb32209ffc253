"""What led to a number that is not finite, in a folder of the run: the batch, the weights before the step, and where it was.

```text
nonfinite/step-00000012/
  nonfinite.json        step, position, learning rates, what was bad first
  batch.safetensors     the tensors of the batch, by their places in it
  model.safetensors     weights and buffers before the update, when they are not too large
  random.safetensors    the generators, as they were after the forward pass
```

Tensors and JSON only: reading a bundle runs no code. `read_bundle` refuses what it does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.files import Files, make_folder, remove_tree, write_new
from velodrome.checkpoint.manifest import parse_json
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.nested import join, split
from velodrome.checkpoint.tensors import decode_tensors, encode_tensors
from velodrome.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["FOLDER", "MAX_BUNDLES", "Bundle", "bundle_name", "read_bundle", "write_bundle"]

FOLDER = "nonfinite"
MAX_BUNDLES = 3
"""of a run: the first ones tell, the hundredth fills the disk"""
MAX_MODEL_BYTES = 2**30
"""weights above it are left out; the newest checkpoint holds others that are nearly theirs"""
_FACTS = "nonfinite.json"
_MAX_FACTS_BYTES = 10_000_000
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was read.

    Fields:
        path: its folder.
        facts: what `nonfinite.json` says.
        batch: as the loop had it, on the CPU; None where the batch was gone, or could not be written.
        weights: of the model, by clean names; empty where they were left out.
        random: the generators' states; empty where they were not kept.
    """

    path: Path
    facts: dict[str, Any]
    batch: Any = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    random: Mapping[str, Any] = field(default_factory=dict)


def bundle_name(step: int) -> str:
    """Return the name of a step's folder.

    >>> bundle_name(12)
    'step-00000012'
    """
    return f"step-{step:08d}"


def write_bundle(
    run_dir: Path,
    facts: Mapping[str, Any],
    *,
    batch: Any,
    model: nn.Module | None,
    random: Mapping[str, Any],
    files: Files | None = None,
) -> Path | None:
    """Write a bundle under a name of its own, whole or not at all; return its folder, or None when the run has enough of them.

    Args:
        run_dir: of the run; nothing is written outside of it.
        facts: plain values with "step" among them.
        batch: anything; what is no tensor, number or text makes it be left out.
        model: with the weights before the step; None leaves them out.
        random: see `velodrome.seeding.get_random_state`.
        files: where the operations go; the real disk when left out.
    Raises:
        OSError: the disk failed; nothing half-made stays.
    """
    files = files or Files()
    folder = run_dir / FOLDER
    path = folder / bundle_name(int(facts["step"]))
    if path.is_dir():  # the run was resumed before this step, and comes by again
        return path
    if folder.is_dir() and sum(1 for _ in folder.glob("step-*")) >= MAX_BUNDLES:
        return None
    contents: dict[str, bytes] = {}
    written: dict[str, Any] = {"format": _FORMAT, **facts, "batch": None, "random": None}
    for name, value in (("batch", batch), ("random", dict(random))):
        tensors: dict[str, Tensor] = {}
        try:
            written[name] = split(value, tensors, place=name)
            contents[f"{name}.safetensors"] = encode_tensors(tensors)
        except CheckpointError as error:
            written[name], written[f"no_{name}"] = None, error.message
    state = {} if model is None else _state_of(model)
    if state and sum(each.numel() * each.element_size() for each in state.values()) <= MAX_MODEL_BYTES:
        contents["model.safetensors"] = encode_tensors(state)
    contents[_FACTS] = (json.dumps(written, indent=1) + "\n").encode()
    make_folder(files, folder)
    temporary = folder / f".tmp-{path.name}"
    if temporary.exists() or temporary.is_symlink():
        remove_tree(files, temporary)
    files.mkdir(temporary)
    for name, data in contents.items():
        write_new(files, temporary / name, [data])
    files.replace(temporary, path)
    files.fsync_dir(folder)
    return path


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        ArgumentError: the folder is none.
        CheckpointError: a file of it is damaged.
    """
    path = Path(path).expanduser()
    try:
        if (path / _FACTS).stat().st_size > _MAX_FACTS_BYTES:
            raise CheckpointError(f"{path / _FACTS} is larger than {_MAX_FACTS_BYTES:,} bytes. No run wrote that.")
        data = (path / _FACTS).read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"{str(path)!r} is no bundle of a number that was not finite: it holds no {_FACTS}. Give a folder such as "
            f"runs/mine/{FOLDER}/{bundle_name(12)}."
        ) from error
    facts = parse_json(data, origin=str(path / _FACTS), limit=_MAX_FACTS_BYTES)
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT or not isinstance(facts.get("step"), int):
        raise CheckpointError(
            f"{path / _FACTS} is not in format {_FORMAT}, the one that this release reads.", path=path
        )
    parts: dict[str, Any] = {}
    for name in ("batch", "random"):
        file = path / f"{name}.safetensors"
        has_it = facts.get(name) is not None and file.is_file()
        parts[name] = join(facts[name], decode_tensors(file)) if has_it else None
    model = path / "model.safetensors"
    return Bundle(
        path=path,
        facts={name: value for name, value in facts.items() if name not in parts},
        batch=parts["batch"],
        weights=decode_tensors(model) if model.is_file() else {},
        random=parts["random"] or {},
    )


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    state = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    clean = clean_names(state)
    return {clean[name]: value for name, value in state.items()}
