"""Weights that another program saved with `torch.save`: the one place where a pickle is opened, on an explicit command only.

`torch.load(weights_only=True)` reads a pickle with an interpreter of its own that knows tensors and plain containers and calls nothing
else (docs.pytorch.org/docs/stable/notes/serialization.html). What it does not limit is limited here: entries of the archive that are
compressed, and tensors that stand for more bytes than the file holds.
"""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.errors import ArgumentError, CheckpointError, nearest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_foreign_weights"]

_NESTS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
_MAX_PICKLE_BYTES = 1 << 28  # the names and shapes; the numbers are stored beside it
_SLACK_BYTES = 1 << 20
_SHOWN = 5


def read_foreign_weights(path: Path, *, key: str = "", strip: str = "") -> dict[str, Tensor]:
    """Read named tensors from a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file; no code in it is ever run.

    Prefixes of `DistributedDataParallel` and `torch.compile` are taken off.

    Args:
        path: the file.
        key: the entry that holds the weights, with dots for deeper ones; found by its usual names when empty.
        strip: a prefix that every name has and that is taken off too, such as "model.".
    Raises:
        CheckpointError: it holds something else than tensors, or is damaged.
        ArgumentError: no such key, or a name lacks the prefix.
    Cost: the numbers are mapped from the file, not read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a plain file. Give a file of weights.", path=path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.", path=path) from error
    document = decode_tensors(path) if path.suffix.lower() == ".safetensors" else _load(path)
    found = _find(document, key, path)
    others = [name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        first = found[others[0]]
        raise CheckpointError(
            f"{path} holds {len(others)} entries that are no tensors, the first of them {str(others[0])[:100]!r} (a "
            f"{type(first).__name__}). Weights are tensors by name. {_say_keys(found)}",
            path=path,
        )
    named: dict[str, Tensor] = dict(found)
    _check_sizes(named, num_bytes=status.st_size, path=path)
    clean = clean_names(named)
    named = {clean[name]: tensor for name, tensor in named.items()}
    if strip:
        without = [name for name in named if not name.startswith(strip) or name == strip]
        if without:
            raise ArgumentError(
                f"--strip {strip!r} is not in front of {len(without)} names, such as {without[0]!r}. Every name must begin with it. "
                f"Leave it out, or choose the entry with --key."
            )
        named = {name.removeprefix(strip): tensor for name, tensor in named.items()}
    return named


def _load(path: Path) -> Any:  # Any: whatever containers the file holds
    import pickle

    import torch

    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    elif path.stat().st_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} is no archive of torch.save and has {path.stat().st_size:,} bytes. Files of before torch 1.6 are read up to "
            f"{_MAX_PICKLE_BYTES:,}. Save it again with a newer torch.",
            path=path,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's age; what is wrong with it is said below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_archive else None)
    except pickle.UnpicklingError as error:
        # Of torch's page of advice, some of it unsafe, only what it found.
        found = str(error).rpartition("WeightsUnpickler error: ")[2]
        named = re.search(r"(?:GLOBAL|class) ([\w.]+)", found)
        what = f"it names {named[1][:100]}" if named else (found.splitlines() or [""])[0][:200].rstrip(". ")
        raise CheckpointError(
            f"{path} holds more than tensors: {what}. Only tensors and plain containers are read, and nothing in the file was run. In "
            f"the program that wrote it: torch.save(model.state_dict(), new_path).",
            path=path,
        ) from None
    except Exception as error:  # torch raises nearly anything for a damaged file
        reason = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {reason}. Save it again, or give another file.",
            path=path,
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that would be larger in memory than it is on the disk: torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is a damaged archive: {error}. Save it again, or give another file.", path=path
        ) from error
    size = path.stat().st_size
    packed = next((each for each in entries if each.compress_type != zipfile.ZIP_STORED), None)
    total = sum(each.file_size for each in entries)
    if packed is not None or total > size:
        what = (
            f"{packed.filename[:100]!r} is compressed"
            if packed
            else f"its entries have {total:,} bytes, and it {size:,}"
        )
        raise CheckpointError(
            f"{path} is no archive of torch.save: {what}. torch.save stores everything as it is. Unpack and save it again.",
            path=path,
        )
    pickled = max((each.file_size for each in entries if each.filename.endswith(".pkl")), default=0)
    if pickled > _MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} has {pickled:,} bytes of names and shapes. At most {_MAX_PICKLE_BYTES:,} are read. Save the weights alone.",
            path=path,
        )


def _find(document: Any, key: str, path: Path) -> Mapping[Any, Any]:
    """Return the table that holds the weights."""
    if isinstance(document, Tensor):
        raise CheckpointError(f"{path} holds one tensor without a name. Weights are tensors by name.", path=path)
    if not isinstance(document, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(document).__name__}. Weights are a table of tensors by name, as model.state_dict() gives.",
            path=path,
        )
    here: Any = document
    for part in key.split(".") if key else ():
        if not isinstance(here, Mapping) or part not in here:
            known = [str(each) for each in here] if isinstance(here, Mapping) else []
            raise ArgumentError(f"--key {key!r}: there is no {part!r} in {path}. {nearest(part, known[:50])}")
        here = here[part]
    if key:
        if not isinstance(here, Mapping):
            raise ArgumentError(
                f"--key {key!r} of {path} is a {type(here).__name__}. It must be a table of tensors by name."
            )
        return here
    if here and all(isinstance(value, Tensor) for value in here.values()):
        return here
    nests = [name for name in _NESTS if isinstance(here.get(name), Mapping)]
    if len(nests) > 1:
        raise ArgumentError(
            f"{path} holds several sets of weights: {', '.join(nests)}. Choose one with --key, such as --key {nests[0]}."
        )
    if nests:
        return here[nests[0]]
    if not here:
        raise CheckpointError(f"{path} is empty. Weights are tensors by name.", path=path)
    return here


def _check_sizes(named: Mapping[str, Tensor], *, num_bytes: int, path: Path) -> None:
    """Refuse tensors that would take far more room than the file has: one number may claim to be a billion."""
    total, seen = 0, set[tuple[object, ...]]()
    for tensor in named.values():
        if tensor.layout.__str__() != "torch.strided" or tensor.is_meta:
            continue  # refused when it is written, by name
        view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if view not in seen:
            seen.add(view)
            total += tensor.numel() * tensor.element_size()
    if total > 2 * num_bytes + _SLACK_BYTES:
        raise CheckpointError(
            f"{path} has {num_bytes:,} bytes, and its tensors claim {total:,}. Tensors that repeat one number are not imported. Save them "
            f"with .contiguous().",
            path=path,
        )


def _say_keys(found: Mapping[Any, Any]) -> str:
    tables = [str(name) for name, value in found.items() if isinstance(value, Mapping)]
    if not tables:
        return "Save model.state_dict() alone."
    return f"Choose the entry that holds them with --key: {', '.join(tables[:_SHOWN])}."
