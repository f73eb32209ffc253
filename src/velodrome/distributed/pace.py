"""How fast each of several processes is by itself: all wait for the slowest, and nobody sees which one that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Pace"]

_TOO_SLOW = 1.5
_TIMES_IN_A_ROW = 3
_LEAST_S = 0.02


class Pace:
    """Adds up what each process tells at log points.

    A process is called slow when it takes more than 1.5 times as long as the median (of an even number the lower of the two in the middle,
    so that one of two can be slow), three log points in a row: one that saved a checkpoint or was interrupted once is not.

    Args:
        size: the number of processes.
    """

    def __init__(self, size: int) -> None:
        self.own_s = [0.0] * size
        """worked by each since the run began; not waited for the others"""
        self._steps_done = 0
        self._first_step: int | None = None
        self._slow: tuple[int, int] = (-1, 0)  # the rank that was the slowest, and how often in a row
        self._ratio = 1.0
        self._has_complained = False

    def note(self, own_s: Sequence[float], steps_done: int) -> None:
        """Take in the seconds that each process worked since the last call; the first call only begins."""
        if self._first_step is None:
            self._first_step = self._steps_done = steps_done
            return
        if steps_done == self._steps_done:
            return  # an evaluation, or the end of an epoch: rank 0 alone writes then
        self._steps_done = steps_done
        self.own_s = [total + new for total, new in zip(self.own_s, own_s, strict=True)]
        slowest = max(range(len(own_s)), key=own_s.__getitem__)
        ratio = own_s[slowest] / max(1e-9, _middle(own_s))
        if ratio <= _TOO_SLOW or own_s[slowest] < _LEAST_S:
            self._slow = (-1, 0)
            return
        rank, times = self._slow
        self._slow, self._ratio = (slowest, times + 1 if rank == slowest else 1), ratio

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds a step that each process worked, by rank."""
        steps = max(1, self._steps_done - (self._first_step or 0))
        return [1e3 * seconds / steps for seconds in self.own_s]

    def describe(self) -> str:
        """Return the milliseconds a step of every rank, in words; "" before there was one."""
        if not any(self.own_s):
            return ""
        return f"By itself a step took {', '.join(f'{each:.3g} ms in rank {rank}' for rank, each in enumerate(self.step_ms))}."

    def complaint(self) -> str:
        """Return a sentence about the process that the others wait for, once; "" when there is none."""
        rank, times = self._slow
        if times < _TIMES_IN_A_ROW or self._has_complained:
            return ""
        self._has_complained = True
        step_ms = self.step_ms
        others = _middle(step_ms)
        return (
            f"Rank {rank} takes {step_ms[rank]:.3g} ms a step by itself, and the median of the {len(step_ms)} processes is {others:.3g} ms "
            f"({self._ratio:.1f} times as long): all wait for it. Look at its device, its data and what else runs on its machine."
        )


def _middle(values: Sequence[float]) -> float:
    from statistics import median_low  # 3 ms to import, for several processes only

    return median_low(values)
