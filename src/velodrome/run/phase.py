"""A phase: training batches, or the batches of one evaluation, and what is summed while they go by."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.errors import ArgumentError
from velodrome.metrics.means import RunningMeans
from velodrome.metrics.merging import ALONE, MetricWorld
from velodrome.metrics.metric_set import MetricSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.metrics.means import Merge
    from velodrome.record.progress import ProgressView

__all__ = ["NO_PHASE", "Phase"]


class Phase:
    """Sums over the batches of one loop; nothing waits for the device before the values are asked for.

    Args:
        name: "train", or what an evaluation is called: "val", "test", "eval", "predict".
        metrics: by name, see `resolve_metrics`; the phase has copies of its own.
        device: where the metrics' state lives.
        display: shows how far the phase is.
        others: the processes whose batches belong to it too.
        outputs_are_reused: what the model returned is overwritten by its next call, so that nothing of it can be kept.
    """

    def __init__(
        self,
        name: str,
        *,
        metrics: Mapping[str, Any],
        device: torch.device,
        display: ProgressView,
        others: MetricWorld = ALONE,
        outputs_are_reused: bool = False,
    ) -> None:
        self._outputs_are_reused = outputs_are_reused
        self.name = name
        self.others = others
        self.display = display
        self.batch_samples = 0
        """samples of the batch under way"""
        self.batches_done = 0
        self.is_whole = True
        self.told: list[tuple[int, bool]] = []
        self.values: dict[str, float] = {}
        """loss, metrics and what was logged, when it is over"""
        self._means = RunningMeans()
        self._metrics = MetricSet(metrics, device)
        self._device = device
        self._seconds = 0.0
        self._entered_at = 0.0

    @property
    def is_training(self) -> bool:
        """Whether updates belong here."""
        return self.name == "train"

    @property
    def seconds(self) -> float:
        """Time spent inside of its loop so far."""
        return self._seconds

    def enter(
        self, epoch: int, epochs: int | None, total_batches: int | None, *, batches_are_new: bool = False
    ) -> None:
        """Its loop begins, or goes on with more data; each batch may be known to have memory of its own."""
        self._metrics.targets_are_new = batches_are_new
        self._entered_at = perf_counter()
        self.display.begin(self.name, epoch, epochs, total_batches)

    def leave(self) -> None:
        """Its loop is over."""
        self._seconds += perf_counter() - self._entered_at

    def count_loss(self, loss: Tensor, items: Tensor | float | None = None, *, prefix: str = "") -> None:
        """Count a loss that is the mean of so many items; of the batch's samples when left out."""
        if items is None:
            items = self.batch_samples
        elif not isinstance(items, Tensor):
            items = float(items)
        if self._outputs_are_reused:
            loss = loss.detach().clone()
        self._means.add(f"{prefix}loss" if prefix else "loss", loss, items)

    def count_norms(self, norms: Mapping[str, Tensor], *, prefix: str = "", all_count: bool = True) -> None:
        """Count the gradient norms of an update; or only those that are finite."""
        for name, norm in norms.items():
            self._means.add(prefix + name, norm, 1.0 if all_count else torch.isfinite(norm).double())

    def measure(self, output: Any, target: Any) -> None:
        """Feed the metrics."""
        if self._outputs_are_reused and isinstance(output, Tensor):
            output = output.detach().clone()
        self._metrics.update(output, target)

    def log(self, values: Mapping[str, Tensor | float]) -> None:
        """Average values that the user logs, by the batch's samples."""
        for name, value in values.items():
            # A copy: it may be a parameter, or a buffer that goes on counting, and the sum is made later.
            own = value.detach().clone() if isinstance(value, Tensor) else value
            self._means.add(name, own, self.batch_samples)

    def ignore_batch(self) -> None:
        """Take nothing from the rest of the batch under way: it was skipped. Other batches cost nothing for it."""
        number = self.batches_done

        def measure(output: Any, target: Any) -> None:
            if self.batches_done != number:
                count_again()
                self.measure(output, target)

        def log(values: Mapping[str, Tensor | float]) -> None:
            if self.batches_done != number:
                count_again()
                self.log(values)

        def count_again() -> None:
            del self.measure, self.log

        self.measure, self.log = measure, log

    @property
    def num_dropped(self) -> int:
        """Logged values that were dropped, because there were too many names."""
        return self._means.num_dropped

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the metrics' state so far, as tensors and numbers."""
        return {"means": self._means.state_dict(), "metrics": self._metrics.state_dict(), "seconds": self._seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._means.load_state_dict(state["means"], self._device)
        self._metrics.load_state_dict(state["metrics"], self._device)
        self._seconds = state["seconds"]

    def absorb(self, other: Phase) -> list[str]:
        """Add the sums and metrics of another process, which goes on no more; waits for the device.

        Returns:
            The metrics that cannot take in what another has seen.
        """
        self._means.absorb_blocking(other._means)
        return self._metrics.absorb_blocking(other._metrics)

    def forget_own(self) -> None:
        """Begin this process's part anew: another process has what was in it. What all knew together stays."""
        self._means.forget_own()
        self._metrics.reset()

    @property
    def unsaved(self) -> list[str]:
        """The metrics whose state is not in `state_dict`."""
        return self._metrics.unsaved

    def drain_blocking(self, merge: Merge) -> dict[str, float]:
        """Return the means since the last call, without the metrics; waits for the device.

        Args:
            merge: adds sums and weights by name to those of other processes.
        """
        return self._means.drain_blocking(merge)

    def finish_blocking(self, merge: Merge) -> None:
        """Set `values` to all means and metrics, and show them; waits for the device. `merge` as for `drain_blocking`."""
        self.values.update(self._means.means_blocking(merge))
        self.values.update(self._metrics.compute_blocking(self.others))
        self.display.show(self.values)
        self.display.end()


class _NoPhase(Phase):
    """Between the loops: nothing can be logged or measured."""

    def __init__(self) -> None:
        self.name = ""
        self.batch_samples = 0

    def log(self, values: Mapping[str, Tensor | float]) -> None:
        raise ArgumentError(
            "log() was called outside of epoch.train(...) and epoch.evaluate(...): there is no phase to average over."
        )

    def count_loss(self, loss: Tensor, items: Tensor | float | None = None, *, prefix: str = "") -> None:
        raise ArgumentError("measure() was called outside of epoch.train(...) and epoch.evaluate(...). Call it inside.")


NO_PHASE = _NoPhase()
