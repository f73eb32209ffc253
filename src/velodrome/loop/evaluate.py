"""Evaluation and prediction outside of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.errors import ArgumentError
from velodrome.loop.epochs import RESERVED_NAMES, evaluation_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.loop.host import BatchSource, FitHost, LoopHost

__all__ = ["check_name", "run_evaluation", "run_prediction"]


def check_name(name: str, *, within: bool) -> None:
    """Refuse a name under which the values of an evaluation cannot be recorded.

    Args:
        name: that was asked for.
        within: whether a batch of the training loop is under way.
    Raises:
        ArgumentError: none is, or the name is taken.
    """
    if name in RESERVED_NAMES or not name:
        raise ArgumentError(
            f"evaluate(name={name!r}) would mix with other values: its values are recorded as {name}/... . Give a name of its own, such "
            f'as "val".'
        )
    if not within:
        raise ArgumentError(
            f"evaluate(name={name!r}) was called outside of the training loop, where no step is under way whose row could have its values. "
            f"Call it in on_step_end, leave the name out, or use epoch.evaluate(data, name={name!r})."
        )


def run_evaluation(trainer: FitHost, host: LoopHost, source: BatchSource, *, name: str = "eval") -> dict[str, float]:
    """Return the means of loss and metrics over the source, by their names without a phase in front."""
    with host.evaluation(name, source) as phase:
        for batch in evaluation_batches(host, phase, source):
            trainer.measure(trainer.forward(batch))
    return phase.values


def run_prediction(
    host: LoopHost,
    source: BatchSource,
    predict: Callable[[Any], Any],
    map_tensors: Callable[[Any, Callable[[Tensor], Tensor]], Any],
) -> Any:
    """Return the model's outputs for all samples, in order, on the CPU; one tensor where the outputs are tensors.

    Args:
        host: of the loop.
        source: all samples in their order.
        predict: the output for a batch.
        map_tensors: applies a function to every tensor of an output, however nested.
    """
    with host.evaluation("predict", source) as phase:
        outputs = []
        # Not a comprehension: before Python 3.12 an error's traceback would hold its iterator, and with it inference mode.
        for batch in evaluation_batches(host, phase, source):
            outputs.append(map_tensors(predict(batch), Tensor.cpu))  # SYNC: asked for on the CPU, a batch at a time
    # Copied outside of inference mode, either way: the caller may go on computing with them as with any tensor.
    if all(isinstance(output, Tensor) and output.ndim for output in outputs):
        return torch.cat(outputs)
    return map_tensors(outputs, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
