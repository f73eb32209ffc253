"""From a model's outputs to predicted classes and probabilities, and to a CSV file."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from velodrome.errors import DataError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

# What turns the outputs that a loss is trained on into probabilities.
_CLASSES = {"cross_entropy": lambda z: torch.softmax(z, dim=1), "nll": torch.exp}
_YES_NO = {"bce": lambda z: z, "bce_with_logits": torch.sigmoid}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A table, one row a sample."""

    header: list[str]
    rows: list[list[object]]


def interpret(outputs: Tensor, *, loss: str, class_names: Sequence[str] = ()) -> Predictions:
    """Read outputs as the loss that trained them does.

    Args:
        outputs: (N, classes) for cross_entropy and nll; (N,), (N, 1) or (N, labels) for bce and bce_with_logits;
            anything with a first dimension of samples for other losses.
        loss: its name in the recipe.
        class_names: for people, in the order of the classes.
    Returns:
        `index, predicted, label, p_<class>...` (`label` only where there are names); for losses that give no
        probabilities `index, output_0, ...`.
    Raises:
        DataError: the outputs do not have the shape that the loss wants.
    """
    if not isinstance(outputs, torch.Tensor):
        raise DataError(f"The model returned a {type(outputs).__name__}. Predictions can be written for one tensor.")
    outputs = outputs.detach().to("cpu", torch.float64)
    if loss in _CLASSES:
        if outputs.ndim != 2:
            raise DataError(
                f"Outputs have shape {tuple(outputs.shape)}. With the loss {loss} they must be (N, classes)."
            )
        return _classes(_CLASSES[loss](outputs), class_names)
    if loss in _YES_NO:
        probability = _YES_NO[loss](outputs.reshape(len(outputs), -1))
        if probability.shape[1] == 1:
            return _classes(torch.cat([1 - probability, probability], dim=1), class_names)
        return _labels(probability)
    flat = outputs.reshape(len(outputs), -1)
    header = ["index", *(f"output_{n}" for n in range(flat.shape[1]))]
    return Predictions(header=header, rows=[[i, *map(_short, row)] for i, row in enumerate(flat.tolist())])


def write_csv(path: Path, predictions: Predictions) -> None:
    """Write the table; the file is whole or absent.

    Raises:
        RefusedError: it cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(predictions.header)
            writer.writerows(predictions.rows)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RefusedError(f"{path} cannot be written: {error.strerror}. Give another --out.", path=path) from error


def _classes(probabilities: Tensor, names: Sequence[str]) -> Predictions:
    num_classes = probabilities.shape[1]
    named = len(names) == num_classes
    # Argmax of (1 - p, p) is class 0 at p = 0.5: the rule "above 0.5" of the accuracy metric.
    predicted = probabilities.argmax(dim=1).tolist()
    columns = [f"p_{names[c] if named else c}" for c in range(num_classes)]
    header = ["index", "predicted", *(["label"] if named else []), *columns]
    rows: list[list[object]] = [
        [i, c, *([names[c]] if named else []), *map(_short, row)]
        for i, (c, row) in enumerate(zip(predicted, probabilities.tolist(), strict=True))
    ]
    return Predictions(header=header, rows=rows)


def _labels(probabilities: Tensor) -> Predictions:
    """Several yes/no questions at once: every label above 0.5 is predicted."""
    header = ["index", "predicted", *(f"p_{n}" for n in range(probabilities.shape[1]))]
    rows: list[list[object]] = [
        [i, " ".join(str(n) for n, p in enumerate(row) if p > 0.5), *map(_short, row)]
        for i, row in enumerate(probabilities.tolist())
    ]
    return Predictions(header=header, rows=rows)


def _short(value: float) -> str:
    return f"{value:.7g}"  # float32 has no more digits
