"""What an update asks of an engine that makes whole steps by itself, and the answers where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.step.bare import BareStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["NO_WHOLE_STEPS", "WholeSteps"]


class WholeSteps:
    """Makes steps as a whole, by the replay of a recording. This one makes none: each is made call by call."""

    def step_of(self, optimizer: Optimizer) -> Callable[[], None]:
        """Return what calls the optimizer in steps that are made call by call."""
        return BareStep(optimizer)

    def make_step(self, loss: Tensor) -> bool:
        """Make the whole step of a loss, update included, if that is what its batch was staged for; return whether it was made."""
        del loss
        return False

    def count_update(self) -> bool:
        """Take note of the update that `make_step` has made; return whether there was one."""
        return False


NO_WHOLE_STEPS = WholeSteps()
