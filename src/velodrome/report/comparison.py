"""Runs beside one another: what differs in how they were made, and whose numbers are better."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from velodrome.monitor import is_metric
from velodrome.report.bill_parts import PARTS
from velodrome.report.differences import Difference, find_differences
from velodrome.report.run_time import bill_parts
from velodrome.report.words import as_number, show_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from velodrome.report.facts import RunFacts

__all__ = ["ComparedNumber", "Comparison", "compare_facts"]

_MACHINE = ("host", "device", "processes")
_NOT_DONE = {
    "under way": "is under way: its numbers are those so far",
    "killed": "was killed: its numbers are those up to then",
    "failed": "failed: its numbers are those up to then",
    "stopped": "was stopped before its end",
    "broken": "is broken: its record cannot be read",
}


@dataclass(frozen=True, kw_only=True)
class ComparedNumber:
    """A number of each run; NaN where a run has none."""

    name: str
    values: tuple[float, ...]
    direction: Literal["min", "max"] | None = None
    """what is better, where that is known"""
    kind: Literal["value", "count", "seconds"] = "value"
    """how it is written"""

    def show(self, value: float) -> str:
        """Return one of the values, or a difference, as it is written; nothing for NaN."""
        if not math.isfinite(value):
            return ""
        if self.kind == "count":
            return f"{value:,.0f}"
        return f"{value:,.3f}" if self.kind == "seconds" else show_number(value)

    def show_difference(self) -> str:
        """Return the difference of two runs with its sign; nothing where there is none to tell."""
        difference = self.difference
        if not math.isfinite(difference):
            return ""
        return f"{'+' if difference > 0 else '-' if difference < 0 else ''}{self.show(abs(difference))}"

    @property
    def best(self) -> int | None:
        """Which run is better than all others; None where nobody knows, or several are equally good."""
        measured = [value for value in self.values if math.isfinite(value)]
        if self.direction is None or len(measured) < 2:
            return None
        best = min(measured) if self.direction == "min" else max(measured)
        return self.values.index(best) if measured.count(best) == 1 else None

    @property
    def difference(self) -> float:
        """Of two runs the second less the first; NaN for more."""
        return self.values[1] - self.values[0] if len(self.values) == 2 else math.nan


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found."""

    names: tuple[str, ...]
    notes: tuple[str, ...]
    """what a reader must know before comparing, in words"""
    differences: tuple[Difference, ...]
    """of recipe, settings, data, command, versions, git and machine, under names such as `recipe: optimizer.lr`"""
    equal: tuple[str, ...]
    """which of these are equal in all runs"""
    metrics: tuple[ComparedNumber, ...]
    """the last and the best value of each"""
    effort: tuple[ComparedNumber, ...]
    """time, steps, samples and speed"""
    bill: tuple[ComparedNumber, ...]
    """seconds of each part"""

    def tabulate(
        self, numbers: Sequence[ComparedNumber], title: str = ""
    ) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return header and rows of a table: name, a value for each run, of two their difference, and which is better where that is known.

        Args:
            numbers: some of these.
            title: of the first column.
        """
        has_two, has_better = len(self.names) == 2, any(each.direction for each in numbers)
        header = (title, *self.names, *(["difference"] if has_two else []), *(["better"] if has_better else []))
        rows = []
        for each in numbers:
            better = "" if each.best is None else self.names[each.best]
            rest = (*([each.show_difference()] if has_two else []), *([better] if has_better else []))
            rows.append((each.name, *(each.show(value) or "–" for value in each.values), *rest))
        return header, rows


def compare_facts(runs: Sequence[RunFacts], names: Sequence[str]) -> Comparison:
    """Compare runs of any recipes.

    Args:
        runs: at least two.
        names: what they are called, each another name.
    """
    notes = [
        f"{name} {_NOT_DONE[run.status]}." for name, run in zip(names, runs, strict=True) if run.status in _NOT_DONE
    ]
    notes += [f"{name}: {problem}" for name, run in zip(names, runs, strict=True) for problem in run.problems]
    notes += [
        f"{name}: its bill is of the part {'before' if run.bill_is_of_part_before else 'since'} it went on last."
        for name, run in zip(names, runs, strict=True)
        if run.bill and (run.bill_is_of_part_before or run.goings_on)
    ]
    differences: list[Difference] = []
    equal: list[str] = []
    for group, tables in _groups(runs, names, notes):
        found = find_differences(tables)  # a run without a table has None everywhere
        differences += [
            Difference(name=f"{group}: {each.name}" if each.name else group, values=each.values) for each in found
        ]
        if not found and any(tables):
            equal.append(group)
    return Comparison(
        names=tuple(names),
        notes=tuple(notes),
        differences=tuple(differences),
        equal=tuple(equal),
        metrics=tuple(_metrics(runs)),
        effort=tuple(_effort(runs)),
        bill=tuple(_bill(runs)),
    )  # fmt: skip


def _groups(
    runs: Sequence[RunFacts], names: Sequence[str], notes: list[str]
) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    recipes, settings = [run.recipe for run in runs], [run.settings for run in runs]
    groups: list[tuple[str, list[Mapping[str, Any] | None]]] = []
    without = ", ".join(name for name, recipe in zip(names, recipes, strict=True) if not recipe)
    if sum(map(bool, recipes)) >= 2 and not (without and all(settings)):
        groups.append(("recipe", [recipe or None for recipe in recipes]))
        if without:
            notes.append(f"{without} has no recipe that can be read: of recipes only the others are compared.")
    else:
        if any(recipes):
            notes.append(f"{without} has no recipe that can be read, so settings are compared instead of recipes.")
        if all(settings):
            groups.append(("settings", [*settings]))
        elif any(settings) or any(recipes):
            notes.append("Not every run has a checkpoint that tells its settings, so these are not compared.")
    if all(run.data for run in runs):
        groups.append(("data", [_of(run.data, ("samples", "content")) for run in runs]))
    records = [run.surroundings for run in runs]
    if all(run.record for run in runs):
        groups += [
            ("command", [{"": shlex.join(map(str, each["command"]))} if isinstance(each.get("command"), list) else {} for each in records]),
            ("versions", [_table(each.get("versions")) for each in records]),
            ("git", [_table(each.get("git")) for each in records]),
            ("machine", [_of(each, _MACHINE) for each in records]),
        ]  # fmt: skip
    return groups


def _metrics(runs: Sequence[RunFacts]) -> Iterable[ComparedNumber]:
    names = dict.fromkeys(name for run in runs for row in run.epochs for name in row if is_metric(name))
    order = ("val/loss", "val/accuracy", "train/loss", "train/accuracy")
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        known: list[Literal["min", "max"]] = list(
            dict.fromkeys(run.directions[name] for run in runs if name in run.directions)
        )
        direction: Literal["min", "max"] | None = known[0] if len(known) == 1 else None
        yield ComparedNumber(name=f"{name}, last", values=tuple(_last(run, name) for run in runs), direction=direction)
        if direction is not None and not name.startswith("train/"):
            best = tuple(_best(run, name, min if direction == "min" else max) for run in runs)
            yield ComparedNumber(name=f"{name}, best", values=best, direction=direction)


def _effort(runs: Sequence[RunFacts]) -> Iterable[ComparedNumber]:
    progress = [_table(run.record.get("progress")) for run in runs]
    yield _number("epochs", (run.epochs_done for run in runs), "count")
    yield _number("steps", (run.steps_done for run in runs), "count")
    yield _number("samples", (each.get("samples_done") for each in progress), "count")
    yield _number("seconds", (each.get("seconds") for each in progress), "seconds")
    speeds = [[as_number(row.get("samples_per_s")) for row in run.epochs] for run in runs]
    finite = [[speed for speed in each if math.isfinite(speed)] for each in speeds]
    medians = tuple(median(each) if each else math.nan for each in finite)
    yield ComparedNumber(name="samples/s, median epoch", values=medians, direction="max", kind="count")


def _bill(runs: Sequence[RunFacts]) -> Iterable[ComparedNumber]:
    bills = [bill_parts(run.bill) for run in runs]
    for part in dict.fromkeys(part for bill in bills for part in bill):
        yield _number(PARTS.get(part, part), (bill.get(part) for bill in bills), "seconds")
    if any(bills):
        yield _number("wall time", (run.bill.get("wall_s") for run in runs), "seconds")


def _number(name: str, values: Iterable[object], kind: Literal["count", "seconds"]) -> ComparedNumber:
    return ComparedNumber(name=name, values=tuple(map(as_number, values)), kind=kind)


def _last(run: RunFacts, name: str) -> float:
    return next((as_number(row[name]) for row in reversed(run.epochs) if name in row), math.nan)


def _best(run: RunFacts, name: str, choose: Callable[[list[float]], float]) -> float:
    measured = [value for row in run.epochs if math.isfinite(value := as_number(row.get(name)))]
    return choose(measured) if measured else math.nan


def _of(table: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: table[name] for name in names if table.get(name) is not None}


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
