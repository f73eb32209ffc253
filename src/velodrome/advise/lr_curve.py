"""What a learning rate range test gives: rates, losses, and the rate that they suggest; a CSV file, a picture."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from velodrome.advise.outputs import find_target, write_answer
from velodrome.errors import ArgumentError
from velodrome.report.lr_curve import plot_lr_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LRCurve"]

_ROUNDING = 1e-6  # of a loss in 32 bits
_NORMAL_DEVIATION = 1.05  # of the median distance of two draws: 0.954 of their deviation, were they normal
_SKIPPED = 0.1  # of the sweep: the first losses say how the weights began, not what the learning rate does


@dataclass(frozen=True)
class LRCurve:
    """The losses of a range test, and what they suggest."""

    rates: tuple[float, ...]
    """learning rate of each step"""
    losses: tuple[float, ...]
    """loss of each step, before its update"""
    smoothed: tuple[float, ...]
    """exponential mean of the losses, corrected for its beginning"""
    has_diverged: bool = False
    """whether the sweep ended because the loss rose, or was not finite any more"""
    not_finite_at: int | None = None
    """the step, counted from 1, that ended the sweep because a number was NaN or infinite; it is not among the losses"""
    not_finite: str = ""
    """which number that was, and what: "the loss was NaN\""""
    planned_steps: int = 0
    """of the whole range; there are fewer rates where the loss diverged, or the training ended before"""

    @property
    def steepest(self) -> float | None:
        """The learning rate at which the smoothed loss falls fastest; None where it never falls."""
        lowest, start = self._lowest_index(), int(_SKIPPED * len(self.rates))
        if not self._fell:
            return None
        slopes = {
            index: (self.smoothed[index + 1] - self.smoothed[index - 1])
            / math.log(self.rates[index + 1] / self.rates[index - 1])
            for index in range(max(1, start), lowest)
        }
        best = min(slopes, key=slopes.__getitem__, default=None)
        return None if best is None or slopes[best] >= 0 else self.rates[best]

    @property
    def lowest_tenth(self) -> float | None:
        """A tenth of the learning rate at which the smoothed loss is lowest; None where it never falls."""
        return None if self.steepest is None else self.rates[self._lowest_index()] / 10

    @property
    def suggestion(self) -> float | None:
        """The learning rate to begin with: the smaller one of `steepest` and `lowest_tenth`; None where the loss never falls.

        With Adam the loss often falls fastest just before it diverges, where a whole training would not last.
        """
        if self.steepest is None or self.lowest_tenth is None:
            return None
        return min(self.steepest, self.lowest_tenth)

    @property
    def sentence(self) -> str:
        """What came out, for people."""
        if self.not_finite_at == 1:
            return (
                f"{self.not_finite[0].upper()}{self.not_finite[1:]} at step 1, before any update, so there is no suggestion. No learning rate "
                "helps: see what the data, the model and the loss give."
            )
        lost = f"{self.not_finite} at step {self.not_finite_at}"
        if self.suggestion is None:
            ended = "" if self.not_finite_at is None else f"; {lost}, and the test ended there"
            return (
                f"The loss never fell by more than its noise in {len(self.rates)} steps{ended}. So there is no suggestion. Give more steps, or "
                "another range; and see that the model can learn from these data at all."
            )
        if self.has_diverged:
            end = "where it diverged"
        elif len(self.rates) < self.planned_steps:
            end = (
                f"where the training ended, with {self.planned_steps - len(self.rates)} of {self.planned_steps} steps still to come: higher rates "
                "were not tried. Give LRFinder fewer steps, or the fit more"
            )
        else:
            end = "the end of the range"
        end += "" if self.not_finite_at is None else f": {lost}"
        return (
            f"lr {self.suggestion:.2g}: the smaller one of where the loss falls fastest, {self.steepest:.2g}, and a tenth of where it is lowest, "
            f"{self.lowest_tenth:.2g}. "
            f"{len(self.rates)} steps, from {self.rates[0]:.2g} to {self.rates[-1]:.2g}, {end}."
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write rates, losses and smoothed losses, a row a step, in one move.

        Raises:
            RefusedError: something is there that is no file: a named pipe, a device.
            ArgumentError: the file cannot be written.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("lr", "loss", "smoothed_loss"))
        rows.writerows(zip(self.rates, self.losses, self.smoothed, strict=True))
        try:
            write_answer(path, text.getvalue().encode())
        except OSError as error:
            raise ArgumentError(
                f"The table cannot be written to {os.fspath(path)}: {error.strerror}. Its folder must be there and take files. Give another path."
            ) from error

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curve, and write it to a file if one is given.

        Raises:
            ArgumentError: matplotlib is not installed, or the file cannot be written.
            RefusedError: something is there that is no file: a named pipe, a device.
        """
        path = None if path is None else find_target(path)
        marks = {"steepest": self.steepest, "lowest / 10": self.lowest_tenth}
        known = {name: rate for name, rate in marks.items() if rate is not None}
        return plot_lr_curve(self.rates, self.losses, self.smoothed, known, path)

    @property
    def _fell(self) -> bool:
        """Whether the smoothed loss fell by more than one step differs from the next, which is more than the mean of noise does."""
        lowest, start = self._lowest_index(), int(_SKIPPED * len(self.rates))
        if lowest <= start:
            return False
        before, after = self.smoothed[start], self.smoothed[lowest]
        jumps = sorted(abs(b - a) for a, b in pairwise(self.losses[start : lowest + 1]))
        noise = _NORMAL_DEVIATION * jumps[len(jumps) // 2]
        return before - after > max(noise, _ROUNDING * max(abs(before), abs(after)))

    def _lowest_index(self) -> int:
        start = min(int(_SKIPPED * len(self.rates)), max(0, len(self.rates) - 1))
        return min(range(start, len(self.rates)), key=self.smoothed.__getitem__, default=0)
