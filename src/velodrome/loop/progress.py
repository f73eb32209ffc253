"""How far a run is, and why it stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from velodrome.errors import ArgumentError, nearest

__all__ = ["Budget", "Progress", "StopReason"]


class StopReason(Enum):
    """Why a run ended; each value is the sentence that people see."""

    EPOCHS = "All epochs are done."
    STEPS = "The step budget is used up."
    SECONDS = "The time budget is used up."
    EARLY = "No improvement of the monitored value."
    REQUESTED = "A callback asked to stop."
    NOT_SAVED = "Too many saves in a row failed."
    LEFT = "The loop was left before its end."
    FAILED = "An error ended the run."
    INTERRUPTED = "The run was interrupted."
    TERMINATED = "The run was told to end."
    DEADLINE = "The time that the run was given is over."

    def __str__(self) -> str:
        return self.value

    @property
    def is_end(self) -> bool:
        """Whether the run came to the end that it was to have: "done", in its records."""
        return self.name in ("EPOCHS", "STEPS", "SECONDS", "EARLY", "REQUESTED")

    @classmethod
    def of(cls, reason: StopReason | str) -> StopReason:
        """Return the reason itself, or the one of this name, in lower case.

        Raises:
            ArgumentError: there is none of that name.
        """
        if isinstance(reason, cls):
            return reason
        by_name = {each.name.lower(): each for each in cls}
        if str(reason) not in by_name:
            raise ArgumentError(f"reason={reason!r} is no reason to stop. {nearest(str(reason), by_name)}")
        return by_name[str(reason)]


@dataclass
class Progress:
    """Counters of what is done so far; a step is one optimizer update, a micro-batch one forward and backward pass."""

    epochs_done: int = 0
    steps_done: int = 0
    micro_batches_done: int = 0
    samples_done: int = 0
    steps_in_epoch: int = 0
    samples_in_epoch: int = 0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """The number of the epoch under way, counted from 1 as the records do."""
        return self.epochs_done + 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop: after so many epochs, steps or seconds, whichever comes first."""

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, epochs: int | None, steps: int | None, seconds: float | None) -> Budget:
        """Return the budget with these limits.

        Raises:
            ArgumentError: none is given, or one is not positive (or not whole, for epochs and steps).
        """
        for name, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(
                    f"{name}={value!r} is not a number of {name}. It must be a whole number of at least 1."
                )
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf
        ):
            raise ArgumentError(f"seconds={seconds!r} is not a time. It must be a positive number.")
        if epochs is None and steps is None and seconds is None:
            raise ArgumentError("No budget was given. Say how long to train: epochs=5, steps=1000 or seconds=60.")
        return cls(epochs=epochs, steps=steps, seconds=seconds)

    def exhausted_by(self, progress: Progress) -> StopReason | None:
        """Return why the run must stop now, or None."""
        if self.epochs is not None and progress.epochs_done >= self.epochs:
            return StopReason.EPOCHS
        if self.steps is not None and progress.steps_done >= self.steps:
            return StopReason.STEPS
        if self.seconds is not None and progress.seconds >= self.seconds:
            return StopReason.SECONDS
        return None
