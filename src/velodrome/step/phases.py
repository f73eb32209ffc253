"""What an engine does to the batches of a loop before they are run: nothing, unless it is one that has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Place = Callable[[Any], tuple[Any, int]]
    """puts a batch on the device, and counts its samples"""

__all__ = ["NO_PHASES", "NoPhases"]


class NoPhases:
    """An engine that need not know of the loops around its batches."""

    is_on = False
    reuses_memory = False
    """whether the next forward pass writes over the outputs of this one, as CUDA graphs do"""

    def watch(self, place: Place, micro_batch: Callable[[], int | None]) -> Place:
        """Take note that a loop begins; return what puts its batches on the device.

        Args:
            place: puts a batch on the device.
            micro_batch: the number of the training micro-batch that comes, from 0 in the run; None in an evaluation.
        """
        del micro_batch
        return place

    def leave_phase(self) -> None:
        """Take note that the loop is over."""

    def calls(self) -> list[tuple[str, Any]]:
        """Return what is done to each batch, in words and with who does it: for `Trainer.explain`."""
        return []


NO_PHASES = NoPhases()
