"""Named tensors to safetensors bytes and back: no pickle, tied weights written once, reproducible bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from velodrome.checkpoint.manifest import parse_json
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["decode_tensors", "encode_tensors"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a 100,000-tensor model needs about 15 MB


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file that holds these tensors.

    Two names of one tensor (tied weights) are written once, and the file says which name stands for which.
    Tensors that merely overlap are written as copies; non-contiguous ones are made contiguous.

    Raises:
        CheckpointError: a tensor has no dense data to save.
    Cost: one wait for the device per tensor that is not on the CPU, and twice the file's size in host memory.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save
    from torch import Tensor

    plain: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    name_by_view: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise _unsavable(name, f"a {type(tensor).__name__}")
        if tensor.is_meta or tensor.layout.__str__() != "torch.strided":
            raise _unsavable(name, f"{tensor.layout} on {tensor.device}")
        view = _identify(tensor)
        if tensor.numel() and view in name_by_view:
            aliases[name] = name_by_view[view]
            continue
        name_by_view[view] = name
        host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()  # SYNC: the bytes are needed now
        if host.untyped_storage().data_ptr() in storages:
            host = host.clone()
        storages.add(host.untyped_storage().data_ptr())
        plain[name] = host
    metadata = {"format": "pt"}
    if aliases:
        metadata["aliases"] = json.dumps(aliases, sort_keys=True)
    try:
        data = save(plain, metadata=metadata)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The tensors cannot be written as safetensors: {error}. Dense tensors of torch's ordinary types "
            f"can. "
            f"Convert the one named here before saving."
        ) from error
    return _order_metadata(data) if aliases else data


def decode_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, every tied name included.

    The header's size is checked before anything is parsed.

    Raises:
        CheckpointError: not a safetensors file, torn, or with an absurd header.
    """
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Use another checkpoint.", path=path
        ) from error
    aliases = parse_json(metadata.get("aliases", "{}").encode(), origin=str(path), limit=MAX_HEADER_BYTES)
    if not isinstance(aliases, dict):
        raise CheckpointError(f"{path} has tied names that are not a table. Use another checkpoint.", path=path)
    for name, target in aliases.items():
        if not isinstance(target, str) or target not in tensors or name in tensors:
            raise CheckpointError(
                f"{path} ties {name!r} to {target!r}, which cannot be: the second name must hold a tensor "
                f"and the "
                f"first must not. Use another checkpoint.",
                path=path,
            )
    return tensors | {name: tensors[target] for name, target in aliases.items()}


def _identify(tensor: Tensor) -> tuple[object, ...]:
    """Return what two names of one and the same tensor have in common."""
    return (
        tensor.device,
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _order_metadata(data: bytes) -> bytes:
    """Rewrite the header with its metadata sorted.

    safetensors 0.8 writes metadata in the random order of a hash map, so two equal runs would differ in their
    files.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]))


def _check_header(path: Path) -> None:
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Use another checkpoint.", path=path, errno=error.errno
        ) from error
    header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or header_bytes > min(MAX_HEADER_BYTES, num_bytes - 8):
        raise CheckpointError(
            f"{path} is not a safetensors file: its {num_bytes} bytes announce a header of {header_bytes}. "
            f"At most "
            f"{MAX_HEADER_BYTES}, and no more than the file holds, are read. Use another checkpoint.",
            path=path,
        )


def _unsavable(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The tensor {name!r} is {what}. Only dense tensors that hold data can be saved. "
        f"Materialise it, or leave it out of the state.",
        name=name,
    )
