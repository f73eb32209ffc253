"""Processes that train together ask one another about once a second whether any of them was told to stop."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from velodrome.distributed.world import World
    from velodrome.loop.progress import Progress

__all__ = ["Listening"]

_EVERY_S = 1.0
FIRST_EVERY = 1
"""updates before the first exchange, from which their time is known"""


class Listening:
    """Exchanges wishes after a number of updates that rank 0 sets from the time that they take, the same in every process.

    The number begins with `FIRST_EVERY` and at most doubles: a first step that is fast says little about the others. Steps that become slower
    are noticed the next time.

    Args:
        world: the processes.
        progress: of the run; its steps are the same everywhere.
        own_wish: returns what this process was told, or None.
        heed: takes the wishes of all.
    """

    def __init__(
        self,
        world: World,
        progress: Progress,
        *,
        own_wish: Callable[[], Any],
        heed: Callable[[Iterable[Any]], None],
    ) -> None:
        self._world = world
        self._progress = progress
        self._own_wish = own_wish
        self._heed = heed
        self.every = FIRST_EVERY
        """updates between two exchanges"""
        self._next = progress.steps_done + self.every
        self._heard_at = perf_counter()

    def after_update(self, _: object) -> None:
        """Listen, if it is time; every process comes here after the same updates.

        Cost: an exchange of small objects about once a second; otherwise one comparison.
        """
        if self._progress.steps_done < self._next:
            return
        now = perf_counter()
        seconds_per_step = max(1e-9, (now - self._heard_at) / self.every)
        own_every = max(1, min(2 * self.every, int(_EVERY_S / seconds_per_step)))
        told = self._world.gather((self._own_wish(), own_every))
        self.every = told[0][1]
        self._next = self._progress.steps_done + self.every
        self._heard_at = perf_counter()
        self._heed(wish for wish, _ in told)
