"""The metrics that have a name: accuracy and top-k, each a mean of per-sample values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Labels", "SampleMetric", "known_names", "named_metric"]

_TOP_K = re.compile(r"^top[_-]?([1-9][0-9]*)$")


@dataclass(frozen=True)
class SampleMetric:
    """A metric that is the mean of one value a sample (or position).

    `values(output, target)` gives the values, in any shape, or a pair of tensors: their sum and how many there are.
    """

    name: str
    values: Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How targets are to be read, as far as the loss tells."""

    is_binary: bool = False
    """each output is a yes or no of its own, also where there are several of them"""
    binary_threshold: float = 0.5
    """above it an output means class 1: 0.5 for probabilities, 0 for logits"""
    threshold_is_known: bool = False
    """the loss says what the outputs are; otherwise outputs that are no probabilities are refused"""
    ignore_index: int | None = None
    """class indices of this value count neither as right nor as wrong"""


def known_names() -> list[str]:
    """Return the names that `metrics=` accepts; `top5` stands for any k."""
    return ["accuracy", "top5"]


def named_metric(name: str, labels: Labels) -> SampleMetric:
    """Return the metric of that name.

    Args:
        name: "accuracy", or "top" and a number ("top5", "top_5").
        labels: how targets are to be read.
    Raises:
        ArgumentError: there is none; the nearest name is shown.
    """
    if name == "accuracy":
        return SampleMetric("accuracy", _Accuracy(labels))
    match = _TOP_K.match(name)
    if match:
        k = int(match[1])
        return SampleMetric(f"top{k}", lambda output, target: in_top_k(output, target, k, labels))
    raise ArgumentError(
        f"metrics={name!r} is not a known metric. {nearest(name, known_names())} Or give any torchmetrics object."
    )


class _Accuracy:
    """`correct`, with a look at the first values: accuracy of a regression, or of logits taken for probabilities, is no number."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._is_checked = False

    def __call__(self, output: Any, target: Any) -> Any:
        hits = correct(output, target, self._labels)
        if not self._is_checked:
            self._is_checked = True
            self._check(output, target)
        return hits

    def _check(self, output: Tensor, target: Tensor) -> None:
        is_binary = output.is_floating_point() and (output.ndim < 2 or output.shape[1] == 1 or self._labels.is_binary)
        if not is_binary or not output.numel():
            return
        if bool(((target != 0) & (target != 1)).any()):  # SYNC: once a trainer
            raise DataError(
                f"accuracy got targets from {float(target.min()):g} to {float(target.max()):g}, which are not all 0 or 1. "  # SYNC: refused
                f"It is for classes: leave it out for a regression, or give a torchmetrics object such as MeanAbsoluteError()."
            )
        if self._labels.threshold_is_known:
            return
        if bool(((output < 0) | (output > 1)).any()):  # SYNC: once a trainer
            raise DataError(
                f"accuracy got outputs from {float(output.min()):g} to {float(output.max()):g} and cannot tell where a yes begins, "  # SYNC: refused
                f'because this loss does not say what outputs are. Name it (loss="bce_with_logits"), or give a function '
                f"(output, target) as the metric."
            )


def correct(output: Tensor, target: Tensor, labels: Labels) -> Tensor | tuple[Tensor, Tensor]:
    """Return which predictions are right.

    Shapes: classes are in dimension 1 of `output` as in cross entropy: (N, C, ...) against class indices (N, ...) or class
    probabilities (N, C, ...) with C > 1. Equal shapes otherwise mean binary labels, as does one output (N, 1, ...); whole
    numbers on both sides are classes.
    """
    _check_tensors("accuracy", output, target)
    if output.ndim == target.ndim + 1 and _positions_agree(output, target):
        if output.shape[1] > 1:
            return _without_ignored(output.argmax(dim=1) == target, target, labels)
        output = output.squeeze(1)  # one output against labels (N,): the largest of one would always be class 0
    if output.shape == target.shape:
        if not output.is_floating_point() and not target.is_floating_point():
            return output == target
        if labels.is_binary or not target.is_floating_point() or output.ndim < 2 or output.shape[1] == 1:
            return (output > labels.binary_threshold) == (target > 0.5)
        return output.argmax(dim=1) == target.argmax(dim=1)
    raise DataError(
        f"accuracy cannot compare outputs of shape {tuple(output.shape)} with targets of shape {tuple(target.shape)}. "
        f"It wants (N, classes, ...) against (N, ...), or equal shapes for binary labels."
    )


def in_top_k(output: Tensor, target: Tensor, k: int, labels: Labels) -> Tensor | tuple[Tensor, Tensor]:
    """Return whether the right class is among the k largest outputs. Shapes as in `correct`; of class probabilities the largest is right."""
    _check_tensors(f"top{k}", output, target)
    if target.is_floating_point() and output.shape == target.shape and output.ndim > 1:
        target = target.argmax(dim=1)
    if output.ndim != target.ndim + 1 or not _positions_agree(output, target) or output.shape[1] < k:
        raise DataError(
            f"top{k} cannot compare outputs of shape {tuple(output.shape)} with targets of shape {tuple(target.shape)}. "
            f"It wants (N, classes, ...) with at least {k} classes against class indices (N, ...)."
        )
    hits = (output.topk(k, dim=1).indices == target.unsqueeze(1)).any(dim=1)
    return _without_ignored(hits, target, labels)


def _without_ignored(hits: Tensor, target: Tensor, labels: Labels) -> Tensor | tuple[Tensor, Tensor]:
    """Return the hits, or their sum and number without those whose target is to be ignored."""
    if labels.ignore_index is None:
        return hits
    counts = target != labels.ignore_index
    return (hits & counts).sum(), counts.sum()


def _positions_agree(output: Tensor, target: Tensor) -> bool:
    """Return whether the shapes agree apart from the classes: a comparison would otherwise broadcast in silence."""
    return output.shape[0] == target.shape[0] and output.shape[2:] == target.shape[1:]


def _check_tensors(name: str, output: object, target: object) -> None:
    for what, value in (("output", output), ("target", target)):
        if not hasattr(value, "ndim"):
            raise DataError(
                f"{name} got a {type(value).__name__} as {what}. It compares tensors: "
                f"give a function of (output, target) as the metric instead."
            )
