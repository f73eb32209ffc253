"""The eager engine: forward and loss as plain PyTorch runs them. Backward and update are in `updates.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from velodrome.errors import ArgumentError, DataError
from velodrome.step.memory import describe_shapes

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.losses import Loss

__all__ = ["EagerEngine", "Outcome"]

_TARGET_KEYS = ("target", "targets", "label", "labels", "y")


class Outcome:
    """What one forward pass gave.

    `items` is what the loss is a mean over, for exact means of batches that differ in it; None is the batch's samples.
    """

    __slots__ = ("items", "loss", "output", "target")

    def __init__(self, loss: Tensor, output: Any, target: Any, items: Tensor | float | None = None) -> None:
        self.loss = loss
        self.output = output
        self.target = target
        self.items = items

    def take(self, other: Outcome) -> None:
        """Become what another pass over the same batch gave; whoever holds this outcome or its loss, without a graph, sees that."""
        with torch.no_grad():
            self.loss.copy_(other.loss)
        self.output, self.target, self.items = other.output, other.target, other.items


class EagerEngine:
    """Runs one batch through the model and the loss; holds no other state.

    Args:
        model: on its device.
        loss: of (output, target); None when the model or `step_fn` returns the loss.
        step_fn: `(model, batch) -> loss or {"loss": ..., ...}` in place of forward and loss.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss | None,
        step_fn: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self._loss_function = None if loss is None else loss.function
        self._count_items = None if loss is None or loss.divisor == "samples" else loss.count_items
        self._has_items = loss is not None and loss.divisor == "items"
        self.step_fn = step_fn
        self.part_sizes: dict[str, int] = {}
        """samples that go through the model at once since memory ran out, by "train" and "evaluation"; for a checkpoint"""
        self.line = "engine: eager"
        """which engine it is and why, in words"""
        self.why_not = ""
        """why the batch was not split when memory ran out, in a sentence"""

    def driven(self) -> AbstractContextManager[None]:
        """Return the context of a loop that gives every batch to `forward` and its loss to `step`: here it is one like any other."""
        return nullcontext()

    def forward_first(self, first_batch: FirstBatch, batch: Any, role: str) -> Outcome:
        """Do the same as `forward` for the first batch of a source, with its checks."""
        first_batch.shapes = describe_shapes(batch)
        return first_batch.forward(self, batch, role=role)

    def forward(self, batch: Any) -> Outcome:
        """Return output, target and loss of a batch; a plain (input, target) pair takes the short way."""
        if self.step_fn is not None:
            return _outcome_of(self.step_fn(self.model, batch), origin="step_fn")
        if self._loss_function is None:
            return _outcome_of(self._call_model(batch), origin=type(self.model).__name__, batch=batch)
        if type(batch) in (tuple, list) and len(batch) == 2 and isinstance(batch[0], Tensor):
            output = self.model(batch[0])
            target = batch[1]
        else:
            output, target = self.run_model(batch)
        if self._count_items is None or (not self._has_items and target.ndim < 2):  # as `compute_loss`, without a call
            return Outcome(self._loss_function(output, target), output, target)
        return self.compute_loss(self._loss_function, output, target)

    def compute_loss(self, function: Callable[[Any, Any], Any], output: Any, target: Any) -> Outcome:
        """Return the outcome for what `run_model` gave."""
        loss, count = function(output, target), self._count_items
        # One label a sample and none left out is the common case: then nothing needs to be counted.
        if count is not None and (self._has_items or target.ndim > 1):
            return Outcome(loss, output, target, count(output, target))
        return Outcome(loss, output, target)

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `forward` calls, in order, in words and with the function: for `Trainer.explain`."""
        if self.step_fn is not None:
            return [("step_fn: model and loss", self.step_fn)]
        model = ("the model", self.model.forward)
        if self.loss is None:
            return [("the model, which returns its loss", self.model.forward)]
        found = [model, (f"the loss: {self.loss.name}", self.loss.function)]
        if self._has_items:
            found.append(("count what the loss is a mean over", self.loss.count_items))
        elif self.loss.divisor == "positions":
            found.append(("where a sample has several targets: count them", self.loss.count_items))
        return found

    def expect_targets(self, targets: Any) -> None:
        """Look whether targets to come hold labels that the loss ignores: from then on they are counted. Waits for the device."""
        loss = self.loss
        if self._has_items or loss is None or loss.divisor == "samples" or not isinstance(targets, Tensor):
            return
        if not targets.is_floating_point():
            self._has_items = bool((targets == loss.ignore_index).any())  # SYNC: once a source of batches

    def run_model(self, batch: Any) -> tuple[Any, Any]:
        """Return output and target of a batch for a loss that is still to be computed."""
        inputs, target = split_batch(batch)
        return self._call_model(inputs), target

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch, without its target: the last element of a tuple of two or more.

        A dict's target is left out when there is a loss to take it; a model that returns its loss is given the whole dict.
        """
        if isinstance(batch, (tuple, list)):
            return self._call_model(batch if len(batch) == 1 else split_batch(batch)[0])
        if isinstance(batch, Mapping) and self._loss_function is not None and any(key in batch for key in _TARGET_KEYS):
            return self._call_model(split_batch(batch)[0])
        return self._call_model(batch)

    def _call_model(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
            return self.model(*inputs)
        return self.model(inputs)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the target of a batch: the last element of a tuple, or the entry called target, label or y.

    Raises:
        DataError: there is no target to be found.
    """
    if isinstance(batch, Mapping):
        for key in _TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise DataError(
            f"The batch is a dict with the keys {', '.join(map(str, batch))}. None of them is a target ({', '.join(_TARGET_KEYS)}): rename one, or give step_fn=."
        )
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        inputs = batch[:-1]
        return (inputs[0] if len(inputs) == 1 else inputs), batch[-1]
    raise DataError(
        f"The batch is a {type(batch).__name__} without a target. The loss needs (input, target): give pairs, or step_fn=."
    )


def _outcome_of(result: Any, *, origin: str, batch: Any = None) -> Outcome:
    """Read a loss out of what a model or step function returned: a scalar, a dict or an object with `loss`.

    The target for the metrics, where a model that was given the whole batch does not return it, is the batch's.
    """
    target = None
    if isinstance(batch, Mapping):
        target = next((batch[key] for key in _TARGET_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        target = batch[-1]
    if isinstance(result, Tensor):
        if result.ndim and result.numel() != 1:
            if origin == "step_fn":
                raise ArgumentError(
                    f"step_fn returned a tensor of shape {tuple(result.shape)}, which is no loss. It must return a scalar: take its mean()."
                )
            raise ArgumentError(
                f"No loss was given, and {origin} returned a tensor of shape {tuple(result.shape)}, which is none. "
                f'Give a loss of (output, target), such as loss="cross_entropy", or a model that returns a scalar.'
            )
        return Outcome(result, None, target)
    if isinstance(result, Mapping):
        loss, output, target, items = (
            result.get("loss"),
            result.get("output", result.get("logits")),
            result.get("target", target),
            result.get("items"),
        )
    else:
        loss, output, items = getattr(result, "loss", None), getattr(result, "logits", None), None
    if isinstance(loss, Tensor):
        return Outcome(loss, output, target, items)
    if origin == "step_fn":
        raise ArgumentError(
            f'step_fn returned a {type(result).__name__} without a loss tensor. It must return a scalar tensor or a dict with "loss".'
        )
    if isinstance(result, (tuple, list)):
        parts = ", ".join(_describe(part) for part in result)
        raise ArgumentError(
            f"{origin} returned a tuple ({parts}), and which part is the loss is not said. Give step_fn= that takes it out, such as "
            f'lambda model, batch: {{"loss": model(*batch)[0]}}; or loss="cross_entropy", say, for a model of the input alone.'
        )
    raise ArgumentError(
        f'{origin} returned a {type(result).__name__} without a loss. Give loss="cross_entropy", say, or a model that returns its loss.'
    )


def _describe(part: Any) -> str:
    return f"tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
