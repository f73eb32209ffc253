"""A traced program as an ONNX file, and ONNX Runtime to run it: the extra `onnx`."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import ArgumentError, RefusedError
from velodrome.recipes.export.metadata import METADATA_NAME
from velodrome.recipes.export.program import first_reason, quiet_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from velodrome.recipes.export.example import Example

__all__ = ["check_onnx", "read_onnx", "save_onnx"]

INSTALL_HINT = 'pip install "velodrome[onnx]"'
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = 2_000_000_000  # protobuf ends at 2 GiB


def check_onnx() -> None:
    """Refuse at once where the extra is missing.

    Raises:
        ArgumentError: names what is not installed, and the command.
    """
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise ArgumentError(f"--format onnx needs {', '.join(missing)}: not installed. Run: {INSTALL_HINT}")


def save_onnx(
    program: ExportedProgram, path: Path, metadata: str, *, inputs: Sequence[str], outputs: Sequence[str], instead: str
) -> None:
    """Write one .onnx file with the weights in it, and the metadata among its own.

    Args:
        program: traced.
        path: the file.
        metadata: JSON text.
        inputs: their names, in the order of the program's.
        outputs: the same.
        instead: a command that does without ONNX.
    Raises:
        RefusedError: ONNX lacks one of the operations, or one file cannot hold so much.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if num_bytes > _MOST_BYTES:
        raise RefusedError(
            f"The weights have {num_bytes:,} bytes, and an ONNX file holds {_MOST_BYTES:,} at most. Export another format: {instead}"
        )
    try:
        with quiet_torch():
            converted: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=list(inputs), output_names=list(outputs)
            )
    except Exception as error:  # of torch, onnxscript or onnx: they have no common class
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise RefusedError(
            f"This program cannot be written as ONNX: {first_reason(cause)} Export another format: {instead}"
        ) from error
    _name_batch(converted.model, len(inputs))
    converted.model.metadata_props[METADATA_NAME] = metadata
    with quiet_torch():
        converted.save(path, external_data=False)


def read_onnx(path: Path, model: nn.Module) -> tuple[Callable[[Example], dict[str, Tensor]], str]:
    """Return what runs an ONNX file, and the metadata in it."""
    import onnxruntime  # pyright: ignore[reportMissingImports]  (an extra)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]

    def run(example: Example) -> dict[str, Tensor]:
        feed = {name: tensor.numpy() for name, tensor in example.named(model).items()}
        return dict(zip(names, map(torch.from_numpy, session.run(names, feed)), strict=True))

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_NAME, "")


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def _name_batch(model: Any, num_inputs: int) -> None:  # Any: a model of onnx_ir, an optional package
    """Call the open dimension "batch" everywhere: torch hands on a symbol such as `s77`."""
    import onnx_ir  # pyright: ignore[reportMissingImports]  (comes with onnxscript)

    symbols = {
        dim.value
        for value in model.graph.inputs[:num_inputs]
        for dim in value.shape or ()
        if isinstance(dim, onnx_ir.SymbolicDim)
    }
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        for place, dim in enumerate(value.shape or ()):
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value in symbols:
                value.shape[place] = "batch"
