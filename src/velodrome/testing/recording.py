"""A callback that writes down which events came, in which order."""

from __future__ import annotations

EVENTS = (
    "on_fit_start",
    "on_epoch_start",
    "on_step_end",
    "on_evaluate_end",
    "on_checkpoint",
    "on_epoch_end",
    "on_exception",
    "on_fit_end",
)


class RecordingCallback:
    """Keep the name of every event, in order, in `events`.

    Two steps and an evaluation in one epoch, without checkpoints, leave `["on_fit_start", "on_epoch_start",
    "on_step_end", "on_step_end", "on_evaluate_end", "on_epoch_end", "on_fit_end"]`.
    """

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_fit_start(self, trainer: object, *details: object, **more: object) -> None:
        """Training is about to begin."""
        self.events.append("on_fit_start")

    def on_epoch_start(self, trainer: object, *details: object, **more: object) -> None:
        """An epoch begins."""
        self.events.append("on_epoch_start")

    def on_step_end(self, trainer: object, *details: object, **more: object) -> None:
        """The optimizer has updated the weights."""
        self.events.append("on_step_end")

    def on_evaluate_end(self, trainer: object, *details: object, **more: object) -> None:
        """An evaluation is done."""
        self.events.append("on_evaluate_end")

    def on_checkpoint(self, trainer: object, *details: object, **more: object) -> None:
        """A checkpoint is on disk."""
        self.events.append("on_checkpoint")

    def on_epoch_end(self, trainer: object, *details: object, **more: object) -> None:
        """An epoch is done."""
        self.events.append("on_epoch_end")

    def on_exception(self, trainer: object, *details: object, **more: object) -> None:
        """Training failed."""
        self.events.append("on_exception")

    def on_fit_end(self, trainer: object, *details: object, **more: object) -> None:
        """Training is over, whichever way."""
        self.events.append("on_fit_end")
