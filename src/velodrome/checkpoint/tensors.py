"""Named tensors to safetensors bytes and back: no pickle, tied weights written once, reproducible bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.checkpoint.manifest import parse_json
from velodrome.checkpoint.tensor_file import gather
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["decode_tensors", "encode_tensors"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a 100,000-tensor model needs about 15 MB


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file that holds these tensors, see `gather`.

    Raises:
        CheckpointError: a tensor has no dense data to save.
    Cost: the whole file in memory; `TensorFile.chunks` does without.
    """
    return b"".join(gather(tensors).chunks())


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
