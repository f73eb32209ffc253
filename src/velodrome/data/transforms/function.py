"""A plain function as a loader's `transform`: applied to each batch's input after it was gathered, with random numbers of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.data.failures import Failure, list_of
from velodrome.data.randomness import GeneratorsKept, epoch_key, seed_generators
from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

__all__ = ["BatchTransform"]


class BatchTransform:
    """Applies a function to the input of each batch of one epoch.

    What it draws is f(seed, epoch, position of the batch's first sample), from the generators of the CPU and of the data's device.

    Args:
        function: of a tuple's first element, or of the whole batch otherwise.
        seed, epoch: of the order.
        device: where batches come from.
        indices: returns the indices of a batch, for messages; None where nobody knows them.
    Cost: 30 microseconds a batch; nothing where a loader has no transform.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        seed: int,
        epoch: int,
        device: torch.device | None,
        indices: Callable[[int, int], Sequence[Any] | None],
    ) -> None:
        self._function = function
        self._key = epoch_key(seed, epoch)
        self._device = device
        self._indices = indices

    def __call__(self, batch: Any, position: int, size: int) -> Any:
        """Return the batch with its input transformed.

        Args:
            batch: as gathered.
            position: of its first sample in the epoch.
            size: samples, of all processes together.
        Raises:
            FetchError: the function raised.
            ArgumentError: it returned nothing.
        """
        try:
            with GeneratorsKept(self._device):
                seed_generators(self._key, b"transform:%d" % position, self._device)
                changed = self._apply(batch)
        except Exception as error:
            indices = self._indices(position, size)
            of = f"samples {position} to {position + size - 1} of the epoch" if indices is None else list_of(indices)
            remedy = "Check what it does with a batch: transform= is given whole batches of inputs, not samples."
            Failure.of(error, f"transform of {of}", indices or (), remedy=remedy).raise_here()
        else:
            if changed is None or (isinstance(changed, (tuple, list)) and changed[0] is None):
                name = getattr(self._function, "__name__", type(self._function).__name__)
                raise ArgumentError(
                    f"transform={name} returned None for a batch. It must return the changed inputs: end it with a return, also where it changes them "
                    f"in place."
                )
            return changed

    def _apply(self, batch: Any) -> Any:
        function = self._function
        if isinstance(batch, (tuple, list)):
            items = (function(batch[0]), *batch[1:])
            return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
        return function(batch)
