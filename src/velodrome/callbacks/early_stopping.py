"""Stop when a value has not become better for so many epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from velodrome.callbacks.base import Callback
from velodrome.errors import ArgumentError
from velodrome.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from velodrome.trainer import Trainer

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Ends the run when the monitored value has not improved for `patience` epochs in a row.

    ```python
    velodrome.fit(model, train, val, epochs=100, callbacks=[EarlyStopping("val/accuracy", patience=5)], ...)
    ```

    An epoch without the value (a loop of one's own may evaluate every other epoch) is not counted; NaN and infinities are never an
    improvement. A run that goes on after it was stopped has the whole patience again.

    Args:
        monitor: the value that decides, by its name in the epoch's row.
        mode: whether a smaller or a larger value is better; "auto" decides by the name.
        patience: epochs without an improvement after which the run ends.
        min_delta: what counts as an improvement: being better by more than this.
        restore_best: when the run is over, however it ended, put the weights of the best epoch back into the model, and their
            average if there is one. The checkpoints stay what they are: the last one has the last weights, and the optimizer's
            state is the last one too.
    Raises:
        ArgumentError: a value is out of its range; at the first epoch's end, when there is no such value.
    Cost: with `restore_best`, memory on the CPU for a copy of the model, and a copy each time an epoch is the best.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        *,
        mode: Literal["auto", "min", "max"] = "auto",
        patience: int = 3,
        min_delta: float = 0.0,
        restore_best: bool = False,
    ) -> None:
        self.monitor = Monitor(monitor, mode)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ArgumentError(
                f"patience={patience!r} is not a number of epochs. It must be a whole number of at least 1."
            )
        if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not 0 <= min_delta < math.inf:
            raise ArgumentError(f"min_delta={min_delta!r} is not a difference. It must be a number of at least 0.")
        self.patience = patience
        self.min_delta = min_delta
        if not isinstance(restore_best, bool):
            raise ArgumentError(f"restore_best={restore_best!r} is neither True nor False. Give one of them.")
        self.restore_best = restore_best
        self._forget()

    def _forget(self) -> None:
        self.best_value: float | None = None
        """the best value so far"""
        self.best_epoch = 0
        """its epoch, counted from 1; 0 before there is one"""
        self.epochs_waited = 0
        """epochs since then"""
        self._best_step = 0
        self._has_value = False
        self._has_stopped = False
        self._best_weights: dict[str, Any] = {}
        self._best_average: tuple[dict[str, Any], dict[str, object]] = ({}, {})

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin anew with a new trainer; have patience again after having stopped."""
        if not trainer.progress.steps_done:
            self._forget()
        if self._has_stopped:
            self.epochs_waited, self._has_stopped = 0, False

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Compare the epoch with the best one."""
        if self._has_value and self.monitor.name not in row:
            return
        value = self.monitor.value_in(row, asked_by="EarlyStopping")
        self._has_value = True
        if math.isfinite(value) and self.monitor.is_better(value, self.best_value, min_delta=self.min_delta):
            self.best_value, self.best_epoch, self.epochs_waited = value, row["epoch"], 0
            self._best_step = row["step"]
            if self.restore_best:
                self._best_weights = _copy(trainer.model.state_dict())
                self._best_average = _copy(trainer.averaging.state_dict()), trainer.averaging.describe()
            return
        self.epochs_waited += 1
        if self.epochs_waited >= self.patience:
            self._has_stopped = True
            trainer.stop("early")
            best = (
                "it was never a finite number"
                if self.best_value is None
                else f"its best is {self.best_value:.6g}, of epoch {self.best_epoch}"
            )
            by = f" by more than {self.min_delta:g}" if self.min_delta else ""
            trainer.say(
                f"EarlyStopping: {self.monitor.name} has not improved{by} for {self.epochs_waited} epochs "
                f"(patience {self.patience}); {best}, and epoch {row['epoch']} has {value:.6g}."
            )

    def on_fit_end(self, trainer: Trainer) -> None:
        """Put the best weights back."""
        self.restore_best_weights(trainer)

    def restore_best_weights(self, trainer: Trainer) -> None:
        """Put the weights of the best epoch back into the model, where they were kept and are not those it has."""
        if not self._best_weights or trainer.progress.steps_done == self._best_step:
            return
        trainer.model.load_state_dict(self._best_weights)
        average, notes = self._best_average
        if average:
            trainer.averaging.load_state_dict(average, notes)
        trainer.say(f"EarlyStopping: the model has the weights of epoch {self.best_epoch} again, the best one.")

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on: numbers, and the best weights if they are to be restored."""
        return {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "best_step": self._best_step,
            "epochs_waited": self.epochs_waited,
            "best_weights": self._best_weights,
            "best_average": self._best_average[0],
            "best_average_notes": self._best_average[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.best_value, self.best_epoch, self._best_step = state["best_value"], state["best_epoch"], state["best_step"]
        self.epochs_waited = state["epochs_waited"]
        self._has_value = self.best_epoch > 0
        self._best_weights = state["best_weights"]
        self._best_average = state["best_average"], state["best_average_notes"]


def _copy(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return copies of the tensors on the CPU; what is no tensor (a module's extra state) is kept as it is."""
    from torch import Tensor

    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
