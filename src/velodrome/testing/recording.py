"""A callback that writes down which events came, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.callbacks.base import Callback

if TYPE_CHECKING:
    from velodrome.trainer import Trainer

__all__ = ["RecordingCallback"]


class RecordingCallback(Callback):
    """Keep the name of every event, in order, in `events`.

    Two steps and an evaluation in one epoch, without checkpoints, leave `["on_fit_start", "on_epoch_start",
    "on_step_end", "on_step_end", "on_evaluate_end", "on_epoch_end", "on_fit_end"]`.
    """

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        """Record it."""
        self.events.append("on_fit_start")

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Record it."""
        self.events.append("on_epoch_start")

    def on_step_end(self, trainer: Trainer) -> None:
        """Record it."""
        self.events.append("on_step_end")

    def on_evaluate_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Record it."""
        self.events.append("on_evaluate_end")

    def on_checkpoint(self, trainer: Trainer, path: Any) -> None:
        """Record it."""
        self.events.append("on_checkpoint")

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Record it."""
        self.events.append("on_epoch_end")

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Record it."""
        self.events.append("on_exception")

    def on_fit_end(self, trainer: Trainer) -> None:
        """Record it."""
        self.events.append("on_fit_end")
