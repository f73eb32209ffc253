"""All metrics of one phase: fed a batch at a time, computed when the phase ends."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from velodrome.errors import ArgumentError, DataError
from velodrome.metrics.means import RunningMeans
from velodrome.metrics.merging import (
    ALONE,
    MetricWorld,
    absorb_state,
    check_mergeable,
    load_state_of,
    merged_states,
    parts_of,
    state_of,
)
from velodrome.metrics.named import Labels, SampleMetric, named_metric

__all__ = [
    "MAX_HELD_BATCHES",
    "MAX_HELD_NUMBERS",
    "MetricSet",
    "StatefulMetric",
    "check_metrics_mergeable",
    "resolve_metrics",
]

MAX_HELD_BATCHES = 32
MAX_HELD_NUMBERS = 1 << 18


@runtime_checkable
class StatefulMetric(Protocol):
    """What torchmetrics objects look like."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch of predictions and targets."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the last reset: a number or a dict of numbers."""
        ...

    def reset(self) -> None:
        """Forget all batches."""
        ...


def resolve_metrics(metrics: object, *, labels: Labels | None = None) -> dict[str, SampleMetric | StatefulMetric]:
    """Turn what the user gave into metrics by name.

    Args:
        metrics: names, torchmetrics objects and callables `(output, target) -> value(s)`, in a list, or in a dict that names them.
            A function's result is averaged over samples and it may get several batches as one: what is no mean over samples
            (a root, F1) wants a torchmetrics object.
        labels: how named metrics read targets, where the loss tells.
    Raises:
        ArgumentError: an unknown name, something that is no metric, or two metrics of one name.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise ArgumentError(f'metrics={metrics!r} is not a list. Write metrics=["accuracy"].')
    pairs = metrics.items() if isinstance(metrics, Mapping) else ((None, metric) for metric in metrics)
    resolved: dict[str, SampleMetric | StatefulMetric] = {}
    for given_name, metric in pairs:
        if isinstance(metric, str):
            made = named_metric(metric, labels or Labels())
            name = given_name or made.name
        elif isinstance(metric, type):
            raise ArgumentError(
                f"metrics contains the class {metric.__name__}, not an object of it. Write {metric.__name__}(...) with its arguments."
            )
        elif isinstance(metric, StatefulMetric):
            made, name = metric, given_name or _snake_case(type(metric).__name__)
        elif callable(metric):
            name = given_name or getattr(metric, "__name__", type(metric).__name__)
            made = SampleMetric(name, cast("Callable[[Tensor, Tensor], Tensor]", metric))
        else:
            raise ArgumentError(
                f"metrics contains {metric!r}, which is no metric. Give a name, a torchmetrics object or a function of (output, target)."
            )
        if name in resolved or name == "loss":
            raise ArgumentError(
                f"metrics names {name!r} twice (the loss is always there). Give each its own name: metrics={{'{name}_2': ...}}."
            )
        resolved[name] = made
    return resolved


def check_metrics_mergeable(metrics: Mapping[str, SampleMetric | StatefulMetric]) -> None:
    """Refuse metrics that several processes cannot put together.

    Raises:
        ArgumentError: names the metric.
    """
    for name, metric in metrics.items():
        if not isinstance(metric, SampleMetric):
            check_mergeable(name, metric)


class MetricSet:
    """The metrics of one phase, with state of their own.

    Outputs and targets are held for up to 32 batches (or a megabyte) and given to the metrics as one: a metric costs tens of
    microseconds a call whatever the size, so this makes it nearly free.
    """

    def __init__(self, metrics: Mapping[str, SampleMetric | StatefulMetric], device: torch.device) -> None:
        self._sample_metrics = {name: metric for name, metric in metrics.items() if isinstance(metric, SampleMetric)}
        self._stateful = {
            name: copy.deepcopy(metric) for name, metric in metrics.items() if not isinstance(metric, SampleMetric)
        }
        for metric in self._stateful.values():
            if isinstance(metric, torch.nn.Module):
                metric.to(device)
        self._reset_stateful()
        self._means = RunningMeans()
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._held_numbers = 0
        self.targets_are_new = False
        """whether each batch has memory of its own, so that targets can be held without a copy"""
        self.was_fed = False
        """whether a batch came since the last reset"""

    def update(self, output: Any, target: Any) -> None:
        """Take in a batch; the work may happen later."""
        if not self._sample_metrics and not self._stateful:
            return
        self.was_fed = True
        if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.ndim and target.ndim):
            self._flush()
            apply = self._apply_incomplete if output is None or target is None else self._apply
            apply(output, target)
            return
        held = self._outputs
        if held and (held[0].shape[1:] != output.shape[1:] or self._targets[0].shape[1:] != target.shape[1:]):
            self._flush()
        self._held_numbers += output.numel()
        is_full = len(held) + 1 >= MAX_HELD_BATCHES or self._held_numbers >= MAX_HELD_NUMBERS
        held.append(output.detach())
        # What is held is a copy: data that fill one buffer again and again would change it. The model's output is new, and so
        # are batches that were gathered from memory; not to copy those saves 3 microseconds a step.
        self._targets.append(target.detach() if is_full or self.targets_are_new else target.detach().clone())
        if is_full:
            self._flush()

    def compute_blocking(self, others: MetricWorld = ALONE) -> dict[str, float]:
        """Return every metric over all batches since the last reset, none when there were none; waits for the device.

        Args:
            others: the processes whose batches count too; each calls this, also one that had no batch.
        """
        self._flush()
        if not others.any(self.was_fed):  # SYNC: the end of a phase; other processes are asked, if any
            return {}  # a stateful metric would say 0
        values = self._means.means_blocking(others.merge_sums)
        for name, metric in self._stateful.items():
            with torch.inference_mode(), merged_states(metric, others):
                result = metric.compute()
            for key, value in _flatten(name, result).items():
                # Two collections may hold metrics of one name.
                values[f"{name}_{key}" if key in values else key] = value
        return values

    def reset(self) -> None:
        """Forget all batches."""
        self._outputs.clear()
        self._targets.clear()
        self._held_numbers = 0
        self.was_fed = False
        self._means.reset()
        self._reset_stateful()

    @property
    def unsaved(self) -> list[str]:
        """The metrics whose state cannot be saved: neither torchmetrics objects nor with a `state_dict` of their own."""
        return [name for name, metric in self._stateful.items() if not parts_of(metric) and not _has_state(metric)]

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far, as tensors and numbers; see `unsaved` for what is not in it."""
        return {
            "means": self._means.state_dict(),
            "outputs": list(self._outputs),
            "targets": list(self._targets),
            "was_fed": self.was_fed,
            "stateful": {
                name: [state_of(part) for part in parts_of(metric)] or cast("Any", metric).state_dict()
                for name, metric in self._stateful.items()
                if name not in self.unsaved
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` returned; a metric that was not there then begins anew."""
        self._means.load_state_dict(state["means"], device)
        self._outputs = [output.to(device) for output in state["outputs"]]
        self._targets = [target.to(device) for target in state["targets"]]
        self._held_numbers = sum(output.numel() for output in self._outputs)
        self.was_fed = state["was_fed"]
        with torch.inference_mode():
            for name, saved in state["stateful"].items():
                metric: Any = self._stateful.get(name)
                parts = parts_of(metric)
                if not parts and _has_state(metric):
                    metric.load_state_dict(saved)
                for part, own in zip(parts, saved, strict=False):
                    load_state_of(part, own)

    def absorb_blocking(self, other: MetricSet) -> list[str]:
        """Add the batches that another process took in; waits for the device.

        Returns:
            The metrics that cannot take in what another has seen.
        """
        other._flush()
        self._flush()
        self.was_fed |= other.was_fed
        self._means.absorb_blocking(other._means)
        with torch.inference_mode():
            return [name for name, metric in self._stateful.items() if not absorb_state(metric, other._stateful[name])]

    def _reset_stateful(self) -> None:
        with torch.inference_mode():
            for metric in self._stateful.values():
                metric.reset()

    def _flush(self) -> None:
        if not self._outputs:
            return
        one = len(self._outputs) == 1
        output = self._outputs[0] if one else torch.cat(self._outputs)
        target = self._targets[0] if one else torch.cat(self._targets)
        self._outputs.clear()
        self._targets.clear()
        self._held_numbers = 0
        self._apply(output, target)

    def _apply_incomplete(self, output: Any, target: Any) -> None:
        """Apply metrics that can do without: a function of the output alone, say."""
        try:
            self._apply(output, target)
        except (AttributeError, TypeError, DataError) as error:
            missing = " and ".join(name for name, value in (("output", output), ("target", target)) if value is None)
            names = ", ".join([*self._sample_metrics, *self._stateful])
            raise ArgumentError(
                f"The metrics ({names}) need outputs and targets, but the step gave no {missing}: a model or step_fn that returns its "
                f'loss must return a dict with "loss", "output" and "target" for them.'
            ) from error

    def _apply(self, output: Any, target: Any) -> None:
        # Inference mode always, not only where the caller has it: a metric's state that was made inside it
        # could not be updated outside of it, and evaluation ends outside.
        with torch.inference_mode():
            for name, metric in self._sample_metrics.items():
                values = metric.values(output, target)
                if isinstance(values, tuple):
                    self._means.add_counted(name, *values)
                else:
                    self._means.add(name, values, _length(output))
            for metric in self._stateful.values():
                metric.update(output, target)


def _flatten(name: str, result: Any) -> dict[str, float]:
    """Return the numbers of a metric's result by name: a dict, a vector (one number a class) or a scalar."""
    if isinstance(result, Mapping):
        return {inner: number for key, value in result.items() for inner, number in _flatten(str(key), value).items()}
    if isinstance(result, Tensor) and result.ndim:
        numbers = result.reshape(-1).tolist()  # SYNC: end of a phase
        return {f"{name}_{index}": number for index, number in enumerate(numbers)}
    try:
        return {name: float(result)}  # SYNC: end of a phase
    except (TypeError, ValueError):
        raise ArgumentError(
            f"The metric {name!r} computed a {type(result).__name__}, which is no number. "
            f"Give metrics that compute a number, a tensor or a dict of them."
        ) from None


def _has_state(metric: Any) -> bool:
    return callable(getattr(metric, "state_dict", None)) and callable(getattr(metric, "load_state_dict", None))


def _length(output: Any) -> int:
    return len(output) if isinstance(output, Tensor) and output.ndim else 1


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
