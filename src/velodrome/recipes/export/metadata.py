"""What stands in an exported file beside its numbers: all that somebody needs who has the file and not the run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.manifest import read_manifest
from velodrome.checkpoint.read import is_of_checkpoint
from velodrome.errors import CheckpointError
from velodrome.recipes.named_transforms import FIXED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from velodrome.recipes.export.example import Example
    from velodrome.recipes.schema import Recipe
    from velodrome.recipes.trained_model import RunNotes

__all__ = [
    "METADATA_NAME",
    "WeightsOrigin",
    "describe_inputs",
    "describe_outputs",
    "describe_preparation",
    "find_origin",
    "to_text",
]

METADATA_NAME = "velodrome.json"
"""of the extra file in a .pt2 archive, and of the entry in the metadata of the other formats"""

_MEANINGS = {
    "cross_entropy": "logits; softmax over dimension 1 gives probabilities of the classes",
    "nll": "log-probabilities; exp gives probabilities of the classes",
    "bce": "probabilities",
    "bce_with_logits": "logits; sigmoid gives probabilities",
}


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Where weights come from.

    Args:
        run: the id of the run; empty for a file of nobody's run.
        step: updates done; None where nothing says it.
        weights_kind: "raw" or "averaged".
        metrics: of the epoch that ended with this step, if one did.
    """

    run: str = ""
    step: int | None = None
    weights_kind: str = "raw"
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what goes into the file."""
        kind, metrics = self.weights_kind, dict(self.metrics)
        return {"run": self.run, "step": self.step, "weights_kind": kind, "metrics": metrics}


def find_origin(file: Path) -> WeightsOrigin:
    """Return what the folders around a weights file say about it."""
    from velodrome.recipes.trained_model import find_run

    if not is_of_checkpoint(file):
        return WeightsOrigin()
    manifest = read_manifest(file.parent)
    kind = "averaged" if file.name == "ema.safetensors" else "raw"
    return WeightsOrigin(
        run=manifest.run_id, step=manifest.step, weights_kind=kind, metrics=_metrics_of(find_run(file), manifest.step)
    )


def _metrics_of(run: Path | None, step: int) -> dict[str, float]:
    from velodrome.record.journal import read_rows

    if run is None:
        return {}
    try:
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "epoch" and row.get("step") == step]
    except CheckpointError:  # a run whose journal was not copied along has weights all the same
        return {}
    found = rows[-1] if rows else {}
    return {key: value for key, value in found.items() if "/" in key and isinstance(value, float)}


def describe_inputs(model: nn.Module, example: Example) -> list[dict[str, Any]]:
    """Return name, shape and type of each input, and the range of its values in the data."""
    shapes = example.shapes(model)
    found = []
    for name, tensor in example.named(model).items():
        given = "by name" if name in example.inputs else "by position"
        entry: dict[str, Any] = {"name": name, "shape": shapes[name], "dtype": _dtype(tensor), "given": given}
        finite = tensor[tensor.isfinite()]
        if example.origin and finite.numel() and not tensor.is_complex():
            low, high = finite.double().aminmax()
            entry |= {"lowest": float(low), "highest": float(high), "seen_in": f"{example.num_samples} samples"}
        found.append(entry)
    return found


def describe_outputs(outputs: Mapping[int, Mapping[str, Tensor]], loss: str) -> list[dict[str, Any]]:
    """Return name, shape and type of each output; "batch" is the dimension that follows the number of samples.

    Args:
        outputs: by the number of samples that they are of.
        loss: the name of what the model was trained on, which says what its only output means.
    """
    first = next(iter(outputs.values()))
    found: list[dict[str, Any]] = []
    for name, tensor in first.items():
        shape: list[int | str] = []
        if any(name not in each or each[name].ndim != tensor.ndim for each in outputs.values()):
            found.append({"name": name, "shape": ["varies"], "dtype": _dtype(tensor)})
            continue
        for dim in range(tensor.ndim):
            by_size = {size: each[name].shape[dim] for size, each in outputs.items()}
            if all(length == size for size, length in by_size.items()):
                shape.append("batch")
            else:
                shape.append(tensor.shape[dim] if len(set(by_size.values())) == 1 else "varies")
        entry: dict[str, Any] = {"name": name, "shape": shape, "dtype": _dtype(tensor)}
        if len(first) == 1 and loss in _MEANINGS:
            entry["meaning"] = _MEANINGS[loss]
        found.append(entry)
    return found


def describe_preparation(recipe: Recipe, notes: RunNotes) -> dict[str, Any]:
    """Return how inputs were prepared before the model got them: in words, and as numbers.

    The program takes what the model takes. Pixels could be normalised inside of it; the categories of a table and the
    characters of a text cannot, a program has no strings; and a file that prepares some inputs and not others invites
    the mistake that nobody sees, doing it twice. So one rule holds for all, and the same inputs go into the file and `load_model`.
    """
    data = dict(notes.preprocessing)
    transforms = [dict(table) for table in recipe.data.transforms or () if table.get("name") in FIXED]
    kind = data.get("kind")
    if kind == "images":
        words = f"pixels from 0 to 1, minus {data['mean']:.6g}, divided by {data['std']:.6g}"
    elif kind == "csv":
        words = (
            "the columns in their order: numeric ones minus their mean, divided by their std; categorical ones one-hot"
        )
    elif kind == "text":
        words = "each character is its position in the vocabulary"
    elif recipe.data.name in ("mnist", "fashion-mnist"):
        words = "pixels from 0 to 1"
    else:
        words = f"as {recipe.data.name} gives them"
    if transforms:
        words += ", then " + ", then ".join(_show_transform(table) for table in transforms)
    return {"words": words, "data": data, "transforms": transforms}


def to_text(metadata: Mapping[str, Any]) -> str:
    """Return the JSON text that goes into a file."""
    return json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False)


def show_shape(shape: Sequence[int | str]) -> str:
    """Return `(batch, 1, 28, 28)`."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _show_transform(table: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in table.items() if key != "name")
    return f"{table['name']}({arguments})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
