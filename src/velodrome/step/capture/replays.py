"""The steps of an optimizer as an engine has recorded them: made whole when their loss is backpropagated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.step.capture.device_rates import DeviceRates, RatedStep
from velodrome.step.whole_steps import WholeSteps

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from velodrome.step.capture.recording import Recording
    from velodrome.step.updates import Updates

__all__ = ["Replays"]


class Replays(WholeSteps):
    """Makes the steps of batches that were staged by replays; `Updates` asks before it makes one call by call.

    Args:
        updates: of the only optimizer.
        device: of its parameters.
    """

    def __init__(self, updates: Updates, device: torch.device) -> None:
        self.rates = DeviceRates(updates.optimizer, device)
        self.rated: RatedStep | None = None
        """what updates call by call; there is none before a loop was prepared"""
        self._updates = updates
        self._staged: Recording | None = None
        self._made: Recording | None = None

    def stage(self, recording: Recording) -> None:
        """The batch of the next step was copied in: its loss is the recording's."""
        self._staged = recording

    def forget(self) -> None:
        """Whatever was staged is not made."""
        self._staged = self._made = None

    def step_of(self, optimizer: Optimizer) -> RatedStep:
        """Return what updates call by call, with the arithmetic of a replay."""
        self.rated = RatedStep(optimizer, self.rates)
        return self.rated

    def make_step(self, loss: Tensor) -> bool:
        """Make the whole step with a replay, if it is the loss of the batch that was staged."""
        recording, self._staged = self._staged, None
        if recording is None or loss is not recording.outcome_loss:
            return False
        self.rates.refresh()
        recording.replay()
        self._updates.guard.note_loss(recording.loss.peek())
        self._updates.micro_batches = 1
        self._made = recording
        return True

    def count_update(self) -> bool:
        """Take note of the update that a replay has made."""
        recording, self._made = self._made, None
        if recording is None:
            return False
        self._updates.count_update({name: ring.peek() for name, ring in recording.norms.items()})
        recording.advance()
        return True
