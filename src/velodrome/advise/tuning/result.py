"""What came out of tuning: the table, the sentence, and the same as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.advise.tuning.measure import median_of

if TYPE_CHECKING:
    from velodrome.advise.tuning.facts import BenchFacts, Round
    from velodrome.advise.tuning.measure import Agreement
    from velodrome.advise.tuning.rehearsal import Rehearsal
    from velodrome.advise.tuning.setup import Change

__all__ = ["Skipped", "TrialResult", "Tuning", "Verified", "pays"]

OUT_OF_TIME, NOT_REACHED, CUT_SHORT = "out of time", "not reached", "interrupted"
SHARE_OF_CHECK = 0.2
"""of the time, kept for the check of the whole"""
_SAME_SPEED = 0.05


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A technique, or one choice of it, that was not tried."""

    technique: str
    why: str
    change: str = ""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One choice of a technique against the best so far."""

    technique: str
    change: Change
    numerics: str
    speed_up: float = float("nan")
    """of an epoch with its evaluation, against the best before it; NaN where it was not measured"""
    rounds: tuple[Round, ...] = ()
    against: tuple[Round, ...] = ()
    """those of the best before it, in the same turns"""
    agreement: Agreement | None = None
    """with the recipe as it is; None where the first steps see other batches"""
    break_even_steps: int | None = None
    total_steps: int | None = None
    is_taken: bool = False
    why: str = ""

    @property
    def step_s(self) -> float | None:
        """The median time of a step."""
        return median_of([each.step_s for each in self.rounds]) if self.rounds else None

    @property
    def memory_bytes(self) -> int | None:
        """The largest so far, at the end."""
        return self.rounds[-1].memory_bytes if self.rounds else None

    @property
    def cells(self) -> tuple[str, ...]:
        """Return what the table says."""
        losses = "another training" if self.rounds and self.agreement is None else str(self.agreement or "")
        return (
            self.technique,
            str(self.change),
            _times(self.speed_up),
            f"{_ms(median_of([each.step_s for each in self.against]))} -> {_ms(self.step_s)}" if self.rounds else "",
            _mb(self.memory_bytes),
            losses,
            self.outcome,
        )

    @property
    def outcome(self) -> str:
        """Return what became of it."""
        if self.break_even_steps is None:
            return self.why
        length = "" if self.total_steps is None else f"; this run has {self.total_steps:,}"
        return f"{self.why}: pays after {self.break_even_steps:,} steps{length}"

    @property
    def line(self) -> str:
        """Return the trial in one line, as news."""
        return f"{self.technique} {self.change}: {_times(self.speed_up) or '-'}, {self.outcome}"


def pays(run_speed_up: float | None) -> bool:
    """Return whether a whole run of this speed is worth its start; so is one of unknown length."""
    return run_speed_up is None or run_speed_up > 1


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The whole combination against the recipe as it is: a few more turns of the two benches, then the first steps of the real run of each, with
    everything built anew.
    """

    speed_up: float
    steps: int
    """of the real run of the recipe as it is, with an evaluation at their end; the other one saw as many samples"""
    before: Rehearsal
    after: Rehearsal
    loss_change: float
    """of the validation loss (of the training loss where there is none), relative; below 0 is better; NaN where there is no loss"""
    is_faster: bool
    is_as_good: bool
    run_speed_up: float | None = None
    """of the whole run, its start included; None where its length is not known"""
    has_equal_bits: bool = True
    """False where equal numbers were asked for and the weights at the end differ"""
    rounds: tuple[Round, ...] = ()
    baseline: tuple[Round, ...] = ()

    @property
    def pays(self) -> bool:
        """Whether the whole run is faster too, as far as its length is known."""
        return pays(self.run_speed_up)

    @property
    def whole_run(self) -> str:
        """Return the speed of the whole run in words, where it is another than that of an epoch."""
        if self.run_speed_up is None or abs(self.run_speed_up / self.speed_up - 1) < _SAME_SPEED:
            return ""
        return f" an epoch, {self.run_speed_up:.2f}x the whole run with its start"

    @property
    def loss_name(self) -> str:
        """Return which loss was compared."""
        return self.before.loss_name

    @property
    def sentence(self) -> str:
        """Return what the check showed."""
        one, other = (each.val if self.loss_name == "val/loss" else each.train for each in (self.before, self.after))
        metrics = ", ".join(f"{name} {one[name]:.5g} -> {other[name]:.5g}" for name in one if name in other)
        others = (
            "" if self.after.steps == self.steps else f" (and {self.after.steps} of larger batches, as many samples)"
        )
        return f"after {self.steps} steps of the real run{others}, on {self.loss_name.split('/')[0]}: {metrics}"

    @property
    def why_not(self) -> str:
        """Return what is wrong with the numbers at the end, and what to do; nothing where nothing is."""
        if self.is_as_good:
            return ""
        if not self.has_equal_bits:
            return 'the weights are not the same after the check, so nothing was written. Try numerics "close" (--numerics close)'
        if self.loss_change != self.loss_change:
            return "there is no loss to compare, so nothing was written. Take over what you trust by hand"
        worse = f"the loss is {100 * self.loss_change:+.1f} % after {self.steps} steps"
        if self.after.steps != self.steps:
            return f"{worse} or as many samples, so nothing was written. Leave --batch-size out, or look for the larger batch's learning rate (--lr)"
        return f'{worse}, so nothing was written. Try numerics "close" (--numerics close)'


@dataclass(kw_only=True)
class Tuning:
    """Everything that tuning found out, filled in as it goes."""

    recipe: str
    budget_s: float
    seconds: float = 0.0
    trial_s: float = 0.0
    """that the last trial took, or before the first one what one should take"""
    start_s: float = 0.0
    """that starting the first two trials took, which no budget can bound"""
    facts: BenchFacts | None = None
    noise: float = 0.0
    """how far apart the baseline and its twin were, relative"""
    is_repeatable: bool = True
    """whether the baseline gave the same bits twice"""
    num_disturbed: int = 0
    """comparisons during which other programs kept the cores busy, whatever was repeated"""
    others_fraction: float = 0.0
    """the most that they took of the cores, in these"""
    baseline: tuple[Round, ...] = ()
    trials: list[TrialResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    change: Change | None = None
    """all that paid, together; None when nothing did"""
    verified: Verified | None = None
    is_interrupted: bool = False
    written: str | None = None
    """the tuned recipe"""

    @property
    def is_worth_it(self) -> bool:
        """Whether there is a combination that is faster and learns as well."""
        return (
            self.change is not None
            and self.verified is not None
            and self.verified.is_faster
            and self.verified.pays
            and self.verified.is_as_good
        )

    @property
    def sentence(self) -> str:
        """Return what to change."""
        if self.change is None:
            known = "Nothing that was tried is" if self.trials else "Nothing was tried, so nothing is known to be"
            noise = f", by more than the noise of {100 * self.noise:.1f} %" if self.baseline else ""
            return f"{known} faster than the recipe as it is{noise}.{self._more_time}"
        if self.verified is None:
            return f"So far {self.change} looked faster; the whole was not checked, so nothing was written."
        if not self.verified.is_faster:
            is_one = len(self.change.fields) == 1
            looked = (
                f"{self.change} looked faster, but in the end it"
                if is_one
                else f"Each of {self.change} looked faster, but together they"
            )
            return f"{looked} gave {self.verified.speed_up:.2f}x against the recipe as it is, which is within the noise. Leave the recipe as it is."
        if not self.verified.pays:
            return (
                f"{self.change} made an epoch {self.verified.speed_up:.2f}x as fast, but with its start the whole run {self.verified.run_speed_up:.2f}x. "
                "Leave the recipe as it is, or train longer."
            )
        if not self.verified.is_as_good:
            return f"{self.verified.speed_up:.2f}x: {self.change}; but {self.verified.why_not}."
        return f"{self.verified.speed_up:.2f}x{self.verified.whole_run}: {self.change}"

    @property
    def _more_time(self) -> str:
        """Return how much time the trials want that there was none for; nothing where all had their turn."""
        untried = sum(each.why == OUT_OF_TIME for each in self.skipped)
        if not untried or not self.trial_s:
            return ""
        minutes = math.ceil((self.seconds + untried * self.trial_s) / 6 / (1 - SHARE_OF_CHECK)) / 10
        return f" {untried} trials found no time, and one takes about {self.trial_s:.1f} s here: give it --minutes {minutes:g}."

    @property
    def is_anything_known(self) -> bool:
        """Whether there is something to show, however it ended."""
        return bool(self.baseline or self.trials)

    @property
    def _why_longer(self) -> str:
        is_longer = round(self.seconds) > round(self.budget_s)
        return f" (starting the recipe alone took {self.start_s:.0f} s, which comes on top)" if is_longer else ""

    def lines(self) -> list[str]:
        """Return everything for people to read."""
        lines: list[str] = []
        if self.facts is not None:
            facts = self.facts
            length = "a run that a clock ends" if facts.total_steps is None else f"{facts.total_steps:,} steps"
            measured = "not timed"
            if self.baseline:
                step_ms = _ms(median_of([each.step_s for each in self.baseline]))
                measured = f"{step_ms} a step, {_mb(self.baseline[-1].memory_bytes) or '-'}"
            lines.append(
                f"Recipe as it is: {facts.device}, {facts.threads} threads of {facts.cores} cores, {measured}; {length}."
            )
        if self.baseline:
            again = "" if self.is_repeatable else "; its numbers are not the same twice, so equal bits mean little"
            lines.append(f"Noise floor: {100 * self.noise:.1f} %, the baseline against itself{again}.")
        if self.num_disturbed:
            lines.append(
                f"Other programs kept up to {100 * self.others_fraction:.0f} % of the cores busy during {self.num_disturbed} of the comparisons, although turns "
                f"were repeated: do not trust these figures. Close the others, or wait, and tune again."
            )
        if self.trials:
            header = ("technique", "change", "speed", "step", "memory", "losses", "outcome")
            lines += ["", *_table([header, *(each.cells for each in self.trials)]), ""]
            lines.append(
                "Speed is that of an epoch with its evaluation, against the best before: those that are taken add up. "
                "Losses are compared with those of the recipe as it is."
            )
        if self.skipped:
            lines.append("Not tried:")
            lines += [
                f"  {each.technique}{f' {each.change}' if each.change else ''}: {each.why}" for each in self.skipped
            ]
        if self.verified is not None:
            lines.append(f"Checked: {self.verified.sentence}.")
        lines.append(
            f"Took {self.seconds:.0f} s of {self.budget_s:.0f} s{self._why_longer}{', interrupted' if self.is_interrupted else ''}."
        )
        lines.append(self.sentence)
        if self.written is not None:
            lines.append(f"Written: {self.written}. Train it with: velodrome train {self.written}")
        return lines

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Return everything as plain data."""
        verified = self.verified
        return {
            "recipe": self.recipe,
            "budget_s": self.budget_s,
            "seconds": self.seconds,
            "interrupted": self.is_interrupted,
            "facts": None if self.facts is None else asdict(self.facts),
            "noise": self.noise if self.baseline else None,
            "disturbed_comparisons": self.num_disturbed,
            "others_fraction": self.others_fraction,
            "repeatable": self.is_repeatable,
            "baseline": [asdict(each) for each in self.baseline],
            "trials": [
                {
                    "technique": each.technique,
                    "change": _change(each.change),
                    "numerics": each.numerics,
                    "speed_up": each.speed_up,
                    "step_s": each.step_s,
                    "memory_bytes": each.memory_bytes,
                    "losses": None if each.agreement is None else asdict(each.agreement),
                    "break_even_steps": each.break_even_steps,
                    "total_steps": each.total_steps,
                    "taken": each.is_taken,
                    "outcome": each.outcome,
                }
                for each in self.trials
            ],
            "not_tried": [asdict(each) for each in self.skipped],
            "best": None if self.change is None else _change(self.change),
            "verified": None
            if verified is None
            else {
                "speed_up": verified.speed_up,
                "run_speed_up": verified.run_speed_up,
                "steps": verified.steps,
                "before": asdict(verified.before),
                "after": asdict(verified.after),
                "loss_change": verified.loss_change,
                "faster": verified.is_faster,
                "as_good": verified.is_as_good,
            },
            "sentence": self.sentence,
            "written": self.written,
        }


def _change(change: Change) -> dict[str, Any]:
    return dict(change.fields)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _times(ratio: float) -> str:
    return "" if ratio != ratio else f"{ratio:.2f}x"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g} ms"


def _mb(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.0f} MB"
