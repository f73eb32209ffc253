"""What a report is made of: everything that a run directory tells, as plain values. Who reads the files fills it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from velodrome.report.findings import find
from velodrome.report.recorded_bill import RecordedBill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.report.differences import Difference

__all__ = ["Event", "RunFacts", "SavedState", "WentOn"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that was said while the run was under way."""

    time: str
    text: str

    @property
    def kind(self) -> str:
        """What it is: a warning, a run that goes on, an error with its traceback, or a note."""
        if self.text.startswith("warning: "):
            return "warning"
        if self.text.startswith("Going on from the checkpoint"):
            return "went on"
        return "error" if "Traceback (most recent call last)" in self.text else "note"


@dataclass(frozen=True, kw_only=True)
class WentOn:
    """A run that was gone on with."""

    time: str
    step: int | None
    changes: tuple[Difference, ...] = ()
    """of recipe, arguments, versions, machine and processes: before and after"""


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A checkpoint on the disk."""

    name: str
    step: int
    num_bytes: int = 0
    is_best: bool = False
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run, as far as its files tell."""

    name: str
    """of the folder"""
    status: str
    """as in `velodrome show`: "done", "failed", "stopped", "under way", "killed" or "broken" """
    recipe_name: str = ""
    holder: str = ""
    """who writes into the folder now"""
    record: Mapping[str, Any] = field(default_factory=dict)
    """what `run.json` says"""
    surroundings: Mapping[str, Any] = field(default_factory=dict)
    """command, versions, code, machine and the like of the newest part of the run; None for what is not recorded"""
    epochs_done: int | None = None
    steps_done: int | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    """rows of `metrics.jsonl`, one an epoch"""
    steps: Sequence[Mapping[str, Any]] = ()
    """rows of `metrics.jsonl`, one a log point; evenly chosen where there are very many"""
    num_step_rows: int = 0
    """how many there are in the file"""
    evaluations: Sequence[Mapping[str, Any]] = ()
    """rows of `metrics.jsonl`, one an evaluation within the training loop"""
    best: Mapping[str, Any] = field(default_factory=dict)
    """the row of the best epoch"""
    monitor: str = ""
    """the value that decided which one that is"""
    directions: Mapping[str, Literal["min", "max"]] = field(default_factory=dict)
    """what is better of the values where that is known"""
    bill: Mapping[str, Any] = field(default_factory=dict)
    """the last one in `events.jsonl`"""
    bill_is_of_part_before: bool = False
    """the run went on after it, and has not come to the end of an epoch since"""
    step_ms: Sequence[float] = ()
    """what a step took by itself in each process"""
    events: Sequence[Event] = ()
    num_events_left_out: int = 0
    goings_on: Sequence[WentOn] = ()
    checkpoints: Sequence[SavedState] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """that decide the numbers, as the newest checkpoint tells them: also of a run without a recipe"""
    data: Mapping[str, Any] = field(default_factory=dict)
    """what the newest checkpoint tells of the training data: samples, a fingerprint of their content where they were in memory"""
    commands: Sequence[tuple[str, str]] = ()
    """what they are for, and the commands"""
    problems: Sequence[str] = ()
    """files that are damaged or links, or a `run.json` that is missing, in words"""

    @property
    def findings(self) -> list[str]:
        """What the bill means, in words: as the run said it at its end, or worked out for one that did not come so far."""
        found = self.bill.get("findings")
        return [str(each) for each in found] if isinstance(found, list) and found else find(RecordedBill.of(self.bill))

    @property
    def last(self) -> Mapping[str, Any]:
        """The row of the last epoch."""
        return self.epochs[-1] if self.epochs else {}
