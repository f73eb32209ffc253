"""What recording needs to know of the trainer around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from velodrome.step.precision import Precision

__all__ = ["CaptureContext", "Held"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """How many results somebody holds at most before they are summed up: so many must not be written over."""

    losses: int
    """losses, items and norms"""
    batches: int
    """outputs and targets, by batches; 0 where nobody wants them"""
    numbers: int
    """and by the numbers in the outputs: no batch more once there are so many"""


@dataclass(frozen=True, kw_only=True)
class CaptureContext:
    """What recording needs to know of the trainer around it."""

    device: torch.device
    """the model's"""
    precision: Precision
    """of the forward passes"""
    held: Held
    """by guard, means and metrics"""
    say: Callable[[str], None]
    """shows a line to people"""
    warn: Callable[[str], None]
    """shows one that must be seen"""
    steps_done: Callable[[], int]
    """how many updates the run has made, those before it was interrupted included"""
    is_watched: bool
    """callbacks are told of each step, and may change anything: all of it is compared before each step, not only before each loop"""
