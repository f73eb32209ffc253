"""Evaluation and prediction by a trainer, whether a run is under way or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.loop.epochs import evaluation_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.loop.host import BatchSource, FitHost, LoopHost

__all__ = ["run_evaluation", "run_prediction"]


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
