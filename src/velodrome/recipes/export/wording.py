"""What people are told of a file that was exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.recipes.export.metadata import show_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from velodrome.recipes.export.write import Written

__all__ = ["describe_program", "describe_use"]

_USES = {
    "pt2": "torch.export.load({!r}).module()({})",
    "onnx": "onnxruntime.InferenceSession({!r}).run(None, {{{}}})",
    "safetensors": "model.load_state_dict(safetensors.torch.load_file({!r}))",
}


def describe_use(written: Written, target: Path, format: str) -> str:
    """Return the line of Python that uses a file."""
    inputs: Sequence[Mapping[str, Any]] = written.metadata.get("inputs", ())
    names = [(str(each["name"]), each["given"] == "by name") for each in inputs]
    if format == "onnx":
        given = ", ".join(f"{name!r}: {name}" for name, _ in names)
    else:
        given = ", ".join(f"{name}={name}" if is_by_name else name for name, is_by_name in names)
    return _USES[format].format(str(target), given)


def describe_program(written: Written) -> list[str]:
    """Return lines that say what goes in and out, how inputs are prepared, and how the file was checked."""
    metadata, agreement = written.metadata, written.agreement
    lines = [f"Input {_describe(entry)}" for entry in metadata["inputs"]]
    lines += [f"Output {_describe(entry)}" for entry in metadata["outputs"]]
    words, precision = metadata["preparation"]["words"], metadata["precision"]
    lines.append(f"The file does not prepare its inputs, it takes what the model takes: {words}.")
    if precision != "fp32":
        lines.append(f"The run computed in {precision}; the file computes in the precision of the saved weights.")
    if metadata["operators"]:
        names = ", ".join(metadata["operators"])
        lines.append(f"It calls {names}: import the package that registers them before the file is loaded.")
    lines.append(
        f"Checked: read back and run on {written.tried}; it differs from the model by {agreement.largest:.3g} at most, "
        f"{agreement.tolerance:.3g} is allowed."
    )
    return lines


def _describe(entry: Mapping[str, Any]) -> str:
    seen = f", {entry['lowest']:.4g} to {entry['highest']:.4g} in {entry['seen_in']}" if "seen_in" in entry else ""
    meaning = f": {entry['meaning']}" if "meaning" in entry else ""
    return f"{entry['name']}: {entry['dtype']} {show_shape(entry['shape'])}{seen}{meaning}"
