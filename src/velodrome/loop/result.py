"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.loop.progress import StopReason

__all__ = ["FitResult"]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The history of a run and where its files are."""

    history: list[dict[str, Any]] = field(repr=False)
    """One row an epoch: epoch, step, samples, seconds, lr, "train/loss", "val/loss", "val/accuracy", ..."""
    stop_reason: StopReason | None
    """Why the run ended; None while it is still under way."""
    best: dict[str, Any] | None
    """The row with the best value of the monitored metric; None when that metric was never logged."""
    run_dir: Path | None
    """The run's folder, or None when nothing was written."""
    bill: Any = field(default=None, repr=False)
    """Where the wall time went: a `velodrome.record.bill.Bill`, with `parts`, `fraction(part)`, `line()` and `table()`."""

    waits: tuple[str, ...] = field(default=(), repr=False)
    """The lines that were seen waiting for the device, in words: in three of the first batches, or where `find_syncs` looked."""

    @property
    def findings(self) -> list[str]:
        """What stands out about the run's speed, in words: what takes the time, and what to try."""
        from velodrome.report.findings import find_bottlenecks

        return [] if self.bill is None else find_bottlenecks(self.bill, self.waits)

    @property
    def metrics(self) -> dict[str, Any]:
        """The last row of the history, or an empty one when no epoch has ended."""
        return self.history[-1] if self.history else {}

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw training against validation, one panel a metric; needs the extra `plots`.

        Args:
            path: where to write a picture as well; its suffix picks the format.
        Returns:
            A matplotlib Figure.
        """
        from pathlib import Path as FilePath

        from velodrome.report.plots import plot_history

        return plot_history(self.history, None if path is None else FilePath(path))

    def to_pandas(self) -> Any:
        """Return the history as a pandas DataFrame with one row an epoch; needs the extra `pandas`."""
        from velodrome.errors import ArgumentError

        try:
            import pandas
        except ImportError as error:
            raise ArgumentError(
                'to_pandas() needs pandas, which is not installed. Run: pip install "velodrome[pandas]"'
            ) from error
        return pandas.DataFrame(self.history)
