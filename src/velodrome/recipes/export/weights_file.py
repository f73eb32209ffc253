"""Weights alone, as safetensors: the names that the plain module has, each with its own bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.read import is_of_checkpoint, read_tensors
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.recipes.export.comparing import Agreement, compare

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["compare_weights", "read_weights", "save_weights"]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by clean names; those of a checkpoint are compared with its hash first.

    Raises:
        CheckpointError: it is damaged.
    """
    tensors = read_tensors(file.parent, file.stem) if is_of_checkpoint(file) else decode_tensors(file)
    return {clean: tensors[name] for name, clean in clean_names(tensors).items()}


def save_weights(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write them for `safetensors.torch.load_file` and `load_state_dict`, without anything of ours.

    Tied weights are written under each of their names, unlike in checkpoints: a strict `load_state_dict` asks for all of them.

    Raises:
        OSError: the disk is full, say.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        save_file(own, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def compare_weights(tensors: dict[str, Tensor], path: Path) -> Agreement:
    """Read the file as anybody would and compare every tensor, bit for bit."""
    from safetensors.torch import load_file

    found = load_file(path)
    return compare(dict(sorted(tensors.items())), dict(sorted(found.items())), num_eps=0.0)
