"""Deterministic algorithms while batches go by, and torch's own choice put back afterwards."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["Determinism", "resolve_determinism"]


class Determinism:
    """Which algorithms torch may choose. This one leaves it as it is."""

    def around(self) -> AbstractContextManager[None]:
        """Return the context in which batches go through the model and updates are made."""
        return nullcontext()


class Deterministic(Determinism):
    """Algorithms that give the same bits in every run; an operation that has none raises torch's own error, which names it.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """

    def around(self) -> AbstractContextManager[None]:
        """Return the context; the global switches are put back afterwards."""
        return self._set()

    @contextmanager
    def _set(self) -> Iterator[None]:
        before = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        benchmark = torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warns)
            torch.backends.cudnn.benchmark = benchmark


def resolve_determinism(deterministic: object) -> Determinism:
    """Return what `deterministic=` asks for.

    Raises:
        ArgumentError: it is neither True nor False.
    """
    if not isinstance(deterministic, bool):
        raise ArgumentError(f"deterministic={deterministic!r} is neither True nor False. Give one of them.")
    return Deterministic() if deterministic else Determinism()
