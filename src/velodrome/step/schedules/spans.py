"""Lengths as a schedule's arguments give them, and what is known of the run that they are measured by."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from velodrome.errors import ArgumentError

__all__ = ["Interval", "RunLength", "Span", "SpanLike", "read_interval", "read_span"]

_PATTERN = re.compile(r"^(?:every\s+)?(?P<amount>[0-9][0-9_,]*(?:\.[0-9]+)?)?\s*(?P<unit>epoch|step|update)s?$")


class Duration(Protocol):
    """A duration that was parsed elsewhere."""

    @property
    def amount(self) -> float:
        """Return how many."""
        ...

    @property
    def unit(self) -> str:
        """Return "epochs" or "steps"."""
        ...


SpanLike = int | float | str | Duration


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """What is known of a run: updates per epoch, and its budgets as totals."""

    steps_per_epoch: int | None = None
    epochs: int | None = None
    steps: int | None = None

    @property
    def total(self) -> int | None:
        """Return the updates of the whole run: the smaller of the budgets that are known."""
        known = [] if self.steps is None else [self.steps]
        if self.epochs is not None and self.steps_per_epoch is not None:
            known.append(self.epochs * self.steps_per_epoch)
        return min(known, default=None)

    @property
    def total_epochs(self) -> int | None:
        """Return the epochs of the whole run, a last one cut short included."""
        if self.total is None or self.steps_per_epoch is None:
            return self.epochs
        return math.ceil(self.total / self.steps_per_epoch)

    def with_total(self, updates: int) -> RunLength:
        """Return the same run with a length given by hand."""
        return replace(self, epochs=None, steps=updates)


@dataclass(frozen=True)
class Span:
    """A length in updates, in epochs, or as a fraction of the run."""

    amount: float
    unit: Literal["steps", "epochs", "fraction"]
    name: str

    def updates(self, run: RunLength) -> float:
        """Return the length in updates, not rounded.

        Raises:
            ArgumentError: the run's length, or an epoch's, is needed and not known.
        """
        if self.unit == "steps":
            return self.amount
        if self.unit == "epochs":
            if run.steps_per_epoch is None:
                raise ArgumentError(
                    f"{self.name}={self} cannot be turned into updates: the data do not say how many an epoch has. "
                    f'Give it in updates, such as {self.name}="100 steps".',
                    argument=self.name,
                )
            return self.amount * run.steps_per_epoch
        if run.total is None:
            raise ArgumentError(
                f"{self.name}={self} is a fraction of a run whose length is not known. "
                f'Give it in updates, such as {self.name}="100 steps", or give the length by hand: length="1000 steps".',
                argument=self.name,
            )
        return self.amount * run.total

    def __str__(self) -> str:
        return f"{self.amount:g}" if self.unit == "fraction" else f'"{self.amount:g} {self.unit}"'


@dataclass(frozen=True)
class Interval:
    """Every so many updates or epochs."""

    amount: int
    unit: Literal["steps", "epochs"]

    def __str__(self) -> str:
        word = "update" if self.unit == "steps" else "epoch"
        return f"per {word}" if self.amount == 1 else f"every {self.amount:,} {word}s"


def read_span(value: SpanLike, name: str, *, positive: bool = False) -> Span:
    """Read an argument: updates (an int), a fraction of the run (a float), or words such as "5 epochs".

    Args:
        value: what the user gave.
        name: the argument's name, for errors.
        positive: refuse a length of zero.
    Raises:
        ArgumentError: it is none of these, negative, or a float outside 0..1.
    """
    span = _read(value, name)
    if span is None or not math.isfinite(span.amount) or span.amount < 0:
        raise ArgumentError(
            f"{name}={value!r} is not a length. Give updates (100), a fraction of the run (0.1), or words "
            f'("100 steps", "5 epochs").',
            argument=name,
        )
    if span.unit == "fraction" and span.amount > 1:
        raise ArgumentError(
            f"{name}={value!r} is a float, so a fraction of the run, which must be at most 1. "
            f"For so many updates give an int, such as {name}={math.ceil(span.amount)}.",
            argument=name,
        )
    if positive and span.amount == 0:
        raise ArgumentError(f"{name}={value!r} is no time at all. It must be positive.", argument=name)
    return span


def read_interval(value: str | Duration, name: str = "every") -> Interval:
    """Read how often: "step", "epoch", "2 epochs", "100 steps"; "update" is another word for step.

    Raises:
        ArgumentError: it is none of these.
    """
    span = None if isinstance(value, (int, float)) else _read(value, name)
    if span is None or span.amount < 1 or not span.amount.is_integer() or span.unit == "fraction":
        raise ArgumentError(
            f'{name}={value!r} does not say how often. Write "step" (an update), "epoch", or whole amounts of them, '
            f'such as "2 epochs".',
            argument=name,
        )
    return Interval(int(span.amount), span.unit)


def _read(value: SpanLike, name: str) -> Span | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Span(float(value), "steps", name)
    if isinstance(value, float):
        return Span(value, "fraction", name)
    if isinstance(value, str):
        match = _PATTERN.match(value.strip().lower())
        if match is None:
            return None
        amount = float((match["amount"] or "1").replace("_", "").replace(",", ""))
        return Span(amount, "epochs" if match["unit"] == "epoch" else "steps", name)
    unit = getattr(value, "unit", None)
    if unit == "epochs" or unit == "steps":
        return Span(float(value.amount), unit, name)
    return None
