"""What an update asks of the processes that train together, and the answers where there is one only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["ONE_PROCESS", "GradientWorld"]

T = TypeVar("T")


class GradientWorld(Protocol):
    """What an update asks of the processes that train together."""

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        """Sum the gradients over all processes in place, and return the sum of a few numbers that travel with them."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
        ...


class OneProcess:
    """A world of one process."""

    size = 1

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        """Return the numbers: there is nobody to add anything."""
        del parameters
        return extras

    def gather(self, value: T) -> list[T]:
        """Return the value: there is no other."""
        return [value]


ONE_PROCESS = OneProcess()
