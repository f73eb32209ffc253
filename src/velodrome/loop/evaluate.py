"""Evaluation and prediction outside of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.loop.epochs import evaluation_batches
from velodrome.loop.host import length_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.loop.host import BatchSource, FitHost, LoopHost

__all__ = ["run_evaluation", "run_prediction"]


def run_evaluation(trainer: FitHost, host: LoopHost, source: BatchSource) -> dict[str, float]:
    """Return the means of loss and metrics over the source, by their names without a phase in front."""
    with host.evaluation("eval", length_of(source)) as phase:
        for batch in evaluation_batches(host, phase, source):
            trainer.measure(trainer.forward(batch))
    return phase.values


def run_prediction(host: LoopHost, source: BatchSource, predict: Callable[[Any], Any]) -> Any:
    """Return the model's outputs for all samples, in order, on the CPU; one tensor where the outputs are tensors."""
    with host.evaluation("predict", length_of(source)) as phase:
        outputs = [_to_cpu(predict(batch)) for batch in evaluation_batches(host, phase, source)]
    if all(isinstance(output, Tensor) and output.ndim for output in outputs):
        # A copy made outside of inference mode: the caller may go on computing with it as with any tensor.
        return torch.cat(outputs).clone()
    return outputs


def _to_cpu(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.cpu()  # SYNC: outputs are asked for on the CPU, a batch at a time
    if isinstance(output, dict):
        return {key: _to_cpu(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(_to_cpu(item) for item in output)
    return output
