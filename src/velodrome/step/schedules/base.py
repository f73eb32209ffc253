"""What the loop asks of a learning-rate schedule, and the one that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NO_SCHEDULE", "NoSchedule", "Schedule", "check_kind"]


class Schedule(ABC):
    """Sets the learning rates of one optimizer; the loop says when an update or an epoch is over.

    `start` and `load_state_dict` may come in either order, before or after the optimizer's own state is loaded. Nothing
    depends on the number of processes.
    """

    @property
    @abstractmethod
    def needs_length(self) -> bool:
        """Whether `start` refuses a run of which neither the length nor the updates per epoch are known."""

    @property
    def past_end(self) -> tuple[int, int] | None:
        """Return the updates counted and those that the curve was fitted to, once there were more; None before, or without an end."""
        return None

    @abstractmethod
    def start(self, *, steps_per_epoch: int | None, epochs: int | None, steps: int | None) -> None:
        """Take what is known of the run and set the learning rates of the first update.

        A second call, for a run that goes on longer, fits the curve of a named schedule to the new length and keeps its position.

        Args:
            steps_per_epoch: updates in an epoch; None for data of unknown length.
            epochs: the run's budget in epochs, as a total.
            steps: the run's budget in updates, as a total.
        Raises:
            ArgumentError: the schedule follows the run's length, and that cannot be known.
        """

    @abstractmethod
    def after_update(self) -> None:
        """Count an update that really changed the weights: not one that a loss scaler skipped."""

    @abstractmethod
    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Count an epoch; `row` has its values by name, such as "val/loss"."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position as texts, numbers, lists and tables."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position and set its learning rates.

        Raises:
            CheckpointError: the state is of another kind of schedule.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return one line for people, such as "cosine over 4,690 updates after 235 of warm-up, per update"."""


class NoSchedule(Schedule):
    """Leaves the learning rates as the optimizer has them."""

    @property
    def needs_length(self) -> bool:
        """Return False."""
        return False

    def start(self, *, steps_per_epoch: int | None, epochs: int | None, steps: int | None) -> None:
        """Do nothing."""

    def after_update(self) -> None:
        """Do nothing."""

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept only the state of no schedule."""
        check_kind(state, "none")

    def describe(self) -> str:
        """Return that there is none."""
        return "none: the learning rate stays as it is"


NO_SCHEDULE = NoSchedule()


def check_kind(state: Mapping[str, Any], kind: str) -> None:
    """Refuse the saved state of another kind of schedule.

    Raises:
        CheckpointError: its kind differs.
    """
    saved = state.get("kind", "none")
    if saved != kind:
        raise CheckpointError(
            f"The saved schedule is {saved!r}, and this run's is {kind!r}. A position on one curve means nothing on another: "
            f"give the scheduler of the saved run, or begin a new run from its weights.",
            saved=saved,
            kind=kind,
        )
