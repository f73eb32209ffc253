"""The rows of a run's records: one at each log point, one for each evaluation within the training loop, one for each epoch."""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.nonfinite.checks import check_finite_mean
from velodrome.record.clock import billed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.run.run import Run

__all__ = ["Rows"]


class Rows:
    """Reads the means, refuses those that are not finite, and writes them down.

    Args:
        run: whose records they are.
        counts_skips: updates may be skipped, so that rows say how many were.
    """

    def __init__(self, run: Run, *, counts_skips: bool) -> None:
        self._run = run
        self.clock = run.clock
        self._counts_skips = counts_skips
        self._then, self._samples_then = 0.0, 0  # the last log point

    def begin_interval(self) -> None:
        """Count time and samples of the next row from here on."""
        self._then, self._samples_then = perf_counter(), self._run.progress.samples_done

    @billed("logging")
    def log_interval(self) -> None:
        """Write a row with the means since the last one."""
        run = self._run
        run.tick()
        run.windows.settle_blocking()
        run.nonfinite.read_flags()
        means = run.train_phase.drain_blocking(run.consensus.add_up)  # SYNC: log point
        self.check_finite(means)
        run.nonfinite.at_log_point()
        then, samples_then = self._then, self._samples_then
        self.begin_interval()
        row = self.coordinates("step", run.row["epoch"])
        row.update({f"train/{name}": value for name, value in means.items()})
        row["samples_per_s"] = (self._samples_then - samples_then) / max(1e-9, self._then - then)
        run.files.write(row)
        run.display.show(means)

    def coordinates(self, kind: str, epoch: int) -> dict[str, Any]:
        """Return what every row begins with: where in the run it was written."""
        progress, windows = self._run.progress, self._run.windows
        return {
            "kind": kind,
            "epoch": epoch,
            "step": progress.steps_done,
            "samples": progress.samples_done,
            "seconds": progress.seconds,
            **windows.learning_rates,
            **({"skipped_steps": windows.skipped} if self._counts_skips else {}),
        }

    def check_finite(self, means: Mapping[str, float]) -> None:
        """Refuse a loss or a gradient norm that is no number.

        Raises:
            NumericsError: with step, epoch and learning rate.
        """
        run = self._run
        for name, mean in means.items():
            what = {"loss": "loss", "grad_norm": "gradient norm"}.get(name.rpartition("/")[2])
            if what is not None and not math.isfinite(mean):
                lr = run.windows.learning_rates["lr"]
                check_finite_mean(mean, what=what, step=run.progress.steps_done, epoch=run.row["epoch"], lr=lr)
