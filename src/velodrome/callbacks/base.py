"""The base of all callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from velodrome.trainer import Trainer

__all__ = ["EVENTS", "Callback", "check_callbacks", "listeners"]

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
"""The events in the order in which a run meets them."""


def check_callbacks(callbacks: object) -> None:
    """Refuse what is no callback, and methods that look like events and are none.

    Raises:
        ArgumentError: names the class and the nearest event.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise ArgumentError(f"callbacks={callbacks!r} is not a list. Write callbacks=[...].")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ArgumentError(f"callbacks contains {callback!r}. Each must be an instance of velodrome.Callback.")
        for name in dir(callback):
            if name.startswith("on_") and name not in EVENTS:
                raise ArgumentError(
                    f"{type(callback).__name__}.{name} is no event and would never be called. {nearest(name, EVENTS)}"
                )


class Callback:
    """Override what you need; an event that nobody overrides costs nothing.

    An error in a callback ends the run.

    >>> class Stop(Callback):
    ...     def on_step_end(self, trainer):
    ...         if trainer.progress.steps_done == 100:
    ...             trainer.stop()
    """

    only_looks = False
    """whether `on_step_end` changes nothing that a step reads: an engine that records steps need not look again before each of them"""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Everything is checked, nothing is trained yet."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """An epoch begins."""

    def on_step_end(self, trainer: Trainer) -> None:
        """The parameters were updated; their gradients are freed already."""

    def on_evaluate_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """An evaluation is over; `metrics` are its values by name, such as "val/loss"."""

    def on_checkpoint(self, trainer: Trainer, path: Any) -> None:
        """A checkpoint is on the disk. Of several processes only the one that writes is told: it must not wait for the others here,
        as an evaluation would.
        """

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """An epoch is over; `row` is what the history keeps of it."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """An error ends `fit`."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """The run is over, however it ended; `trainer.result` is complete."""


def listeners(callbacks: Sequence[Callback]) -> dict[str, list[Callable[..., None]]]:
    """Return, by event, the methods that a callback overrides: an event that nobody listens to is an empty list."""
    return {
        event: [
            getattr(callback, event)
            for callback in callbacks
            if event in vars(callback) or getattr(type(callback), event) is not getattr(Callback, event)
        ]
        for event in EVENTS
    }
