"""Where a loader is: the epoch, how many of its samples were handed out, and the seeds that its order may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LoaderPosition"]

_NAMES = ("epoch", "samples_done", "seed", "num_samples")


class LoaderPosition:
    """The place where the next `iter()` begins, and how far the one under way has come.

    An iteration that is left early ends its epoch: the next one begins the epoch after it. Of several under way the youngest counts.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.samples_done = 0
        self.loaded_seed: int | None = None
        """of the order that a saved position belongs to"""
        self.bound_seed: int | None = None
        """of the trainer that runs the loader"""
        self._iteration = 0
        self._is_iterating = False

    def enter_epoch(self, epoch: int) -> None:
        """Go to the first sample of an epoch, counted from 0."""
        self.epoch, self.samples_done, self._is_iterating = epoch, 0, False

    def begin(self) -> int:
        """An iteration begins; return its number."""
        if self._is_iterating:
            self.epoch, self.samples_done = self.epoch + 1, 0
        self._iteration += 1
        self._is_iterating = True
        return self._iteration

    def advance(self, iteration: int, samples_done: int) -> None:
        """An iteration has come so far in its epoch."""
        if iteration == self._iteration and self._is_iterating:
            self.samples_done = samples_done

    def end(self, iteration: int, epoch: int) -> None:
        """An iteration has come to the end of its epoch."""
        if iteration == self._iteration and self._is_iterating:
            self.enter_epoch(epoch + 1)

    def load(self, state: Mapping[str, Any], *, num_samples: int | None, seed: int | None) -> None:
        """Go to a saved place.

        Args:
            state: with `epoch`, `samples_done`, and the `seed` and `num_samples` of the loader that saved it.
            num_samples, seed: of the loader; None where it does not know, or takes any.
        Raises:
            ArgumentError: something is missing.
            DataError: it belongs to a dataset of another size, or to an order of another seed.
        """
        missing = [name for name in _NAMES if name not in state]
        if missing:
            raise ArgumentError(
                f"The loader's state has no {', '.join(missing)}. It must be what state_dict() of a velodrome.DataLoader returned."
            )
        if state["num_samples"] != num_samples:
            raise DataError(
                f"The saved position belongs to a dataset of {state['num_samples']} samples; this one has {num_samples}. "
                f"Go on with the same data, or start a new run."
            )
        if seed is not None and state["seed"] != seed:
            raise DataError(
                f"The saved position belongs to an order of seed {state['seed']}; this loader has seed={seed}. "
                f"Leave seed out to go on with the saved one, or start a new run."
            )
        self.enter_epoch(int(state["epoch"] or 0))
        self.samples_done = int(state["samples_done"] or 0)
        self.loaded_seed = state["seed"]
