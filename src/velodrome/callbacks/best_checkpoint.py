"""Keep the checkpoints that are best by one more value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from velodrome.callbacks.base import Callback
from velodrome.errors import ArgumentError
from velodrome.monitor import Monitor, Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from velodrome.trainer import Trainer

__all__ = ["BestCheckpoint"]


class BestCheckpoint(Callback):
    """Keeps the checkpoints of the best epochs by a value of its own, besides those that `Checkpointing` keeps.

    ```python
    by_accuracy = BestCheckpoint("val/accuracy")
    trainer = Trainer(model, ..., run_dir="runs/mine", callbacks=[by_accuracy])  # Checkpointing keeps the best by val/loss
    trainer.fit(train, val, epochs=10)
    best = velodrome.load_model(by_accuracy.path, model)
    ```

    The trainer asks it at the end of each epoch, before it saves and removes old checkpoints: an epoch that is among the best is
    saved, and stays until better ones have come. `best.json`, which `weights="best"` reads, stays with `Checkpointing`.

    Args:
        monitor: the value that decides, by its name in the epoch's row.
        mode: whether a smaller or a larger value is better; "auto" decides by the name.
        keep: how many.
    Raises:
        ArgumentError: a value is out of its range; at the first epoch's end, when there is no such value.
    """

    def __init__(self, monitor: str, *, mode: Literal["auto", "min", "max"] = "auto", keep: int = 1) -> None:
        self.monitor = Monitor(monitor, mode)
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ArgumentError(
                f"keep={keep!r} is not a number of checkpoints. It must be a whole number of at least 1."
            )
        self.keep = keep
        self._forget()

    def _forget(self) -> None:
        self._ranking = Ranking(self.monitor, self.keep)
        self._has_value = False
        self._folder: Path | None = None

    @property
    def ranking(self) -> list[tuple[float, int]]:
        """Value and step of the best ones, the best first."""
        return list(self._ranking.places)

    @property
    def kept_steps(self) -> list[int]:
        """The steps whose checkpoints stay."""
        return self._ranking.steps

    @property
    def path(self) -> Path | None:
        """The checkpoint of the best epoch; None when there is none, or nothing is written."""
        if self._folder is None or not self.kept_steps:
            return None
        path = self._folder / f"step-{self.kept_steps[0]:08d}"
        return path if path.is_dir() else None

    def judge(self, row: Mapping[str, Any], step: int) -> bool:
        """Return whether this epoch is among the best; of equal ones the earlier is better."""
        if self._has_value and self.monitor.name not in row:
            return False
        value = self.monitor.value_in(row, asked_by="BestCheckpoint")
        self._has_value = True
        return self._ranking.add(value, step)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin anew with a new trainer."""
        if not trainer.progress.steps_done:
            self._forget()
        self._folder = None if trainer.run_dir is None else trainer.run_dir / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """Return the ranking."""
        return {"ranking": [list(each) for each in self.ranking]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._ranking.load(state["ranking"])
        self._has_value = bool(self._ranking.places)
