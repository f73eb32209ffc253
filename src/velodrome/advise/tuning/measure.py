"""Two configurations take turns, and what two equal ones differ by is noise.

A lone time says more about the machine's mood than about the code: rounds alternate (A B, B A, ...), the ratio is taken within a round,
and the median of the ratios is the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from velodrome.advise.tuning.facts import BenchFacts, Round

__all__ = ["Agreement", "Arm", "Rounds", "agree", "median_of", "take_turns", "whole_run_speed"]

_CLEARLY_SLOWER, _CLEARLY_FASTER = 0.9, 1.25
_DISTURBED = 0.2  # of the cores: what others may take of them before a turn is one too many
CLOSE = 1e-4
"""relative difference of the mean loss over the first steps that another order of adding explains"""


class Arm(Protocol):
    """A configuration that can be asked for one more round."""

    def start(self) -> BenchFacts:
        """Build, warm up, and say what is known."""
        ...

    def round(self, seconds: float) -> Round:
        """Train for about so long."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The rounds of two configurations that took turns."""

    first: tuple[Round, ...]
    second: tuple[Round, ...]
    first_steps: int | None
    """steps an epoch, None where that is not known"""
    second_steps: int | None

    @property
    def others_fraction(self) -> float:
        """The largest share of the cores that other programs kept busy during a round."""
        return max((each.others_fraction for each in (*self.first, *self.second)), default=0.0)

    @property
    def is_disturbed(self) -> bool:
        """Whether other programs had so much of the cores that the figures say more about them."""
        return self.others_fraction > _DISTURBED

    @property
    def ratios(self) -> list[float]:
        """How many times faster the second one was, by round: time of an epoch with its evaluation."""
        return [
            a.epoch_s(self.first_steps) / max(b.epoch_s(self.second_steps), 1e-12)
            for a, b in zip(self.first, self.second, strict=True)
        ]

    @property
    def speed_up(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def spread(self) -> float:
        """How far the ratio lies from 1, or its rounds from it, at most: of two equal configurations the noise floor."""
        centre = self.speed_up
        deviations = sorted(abs(ratio - centre) for ratio in self.ratios)
        return max(abs(centre - 1), median(deviations))


def take_turns(first: Arm, second: Arm, *, steps: tuple[int | None, int | None], rounds: int, seconds: float) -> Rounds:
    """Measure two configurations by turns; one that is clearly slower gets no more than two, a clearly faster one three.

    A turn during which other programs kept the cores busy does not count, and is made again: half as many as there are rounds. Where less
    than half of the rounds are left even so, all of them count, and the comparison is called disturbed.

    Args:
        first, second: started already.
        steps: an epoch of each has.
        rounds: of each.
        seconds: of training a round.
    """
    calm: list[tuple[Round, Round]] = []
    turns: list[tuple[Round, Round]] = []
    is_clear = False
    while not is_clear and len(calm) < rounds and len(turns) < rounds + (rounds + 1) // 2:
        if len(turns) % 2:
            other, one = second.round(seconds), first.round(seconds)
        else:
            one, other = first.round(seconds), second.round(seconds)
        turns.append((one, other))
        if _comparison(turns[-1:], steps).is_disturbed:
            continue
        calm.append((one, other))
        ratios = _comparison(calm, steps).ratios
        is_clear = (len(calm) == 2 and max(ratios) < _CLEARLY_SLOWER) or (
            len(calm) == 3 and min(ratios) > _CLEARLY_FASTER
        )
    return _comparison(calm if is_clear or 2 * len(calm) >= rounds else turns, steps)


def _comparison(turns: Sequence[tuple[Round, Round]], steps: tuple[int | None, int | None]) -> Rounds:
    first, second = zip(*turns, strict=True)
    return Rounds(first=first, second=second, first_steps=steps[0], second_steps=steps[1])


def whole_run_speed(epoch_speed: float, epoch_s: float, epochs: float, warm_up_s: tuple[float, float]) -> float:
    """Return how many times faster the second run is as a whole.

    Args:
        epoch_speed: how many times faster its epochs are.
        epoch_s: an epoch of the first one.
        epochs: of the run; 0 where that is not known, and then an epoch counts alone.
        warm_up_s: of the first and of the second one, until the first steps are done.

    >>> whole_run_speed(2.0, 10.0, 5, (1.0, 1.0))  # 51 s against 26 s
    1.9615384615384615
    >>> whole_run_speed(2.0, 10.0, 5, (1.0, 31.0))  # compiled for half a minute
    0.9107142857142857
    """
    if not epochs:
        return epoch_speed
    return (warm_up_s[0] + epochs * epoch_s) / (warm_up_s[1] + epochs * epoch_s / epoch_speed)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether two configurations that began alike computed the same."""

    kind: str
    """"equal bits", "close" (rounding), or "changed\""""
    difference: float
    """of the mean loss, relative"""

    @property
    def numerics(self) -> str:
        """What happened to the numbers, as a wish names it."""
        return "equal" if self.kind == "equal bits" else self.kind

    def __str__(self) -> str:
        if self.kind == "equal bits":
            return self.kind
        if not self.difference:
            return f"{self.kind}, the same loss"
        return f"{self.kind}, {self.difference:.1e} apart"


def agree(first: tuple[float, str], second: tuple[float, str]) -> Agreement:
    """Compare mean loss and digest of the weights after the same few steps."""
    difference = abs(first[0] - second[0]) / max(abs(first[0]), 1e-12)
    if first == second:
        return Agreement(kind="equal bits", difference=0.0)
    return Agreement(kind="close" if difference <= CLOSE else "changed", difference=difference)


def median_of(values: Sequence[float]) -> float:
    """Return the median; 0 of none."""
    return median(values) if values else 0.0
