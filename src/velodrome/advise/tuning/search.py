"""The search: one technique after another, each on top of those that paid, then the whole against the beginning.

Where the whole is not faster, one of those that seemed to pay does not: parts of it are tried, as long as there is time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.advise.tuning.measure import agree, median_of, take_turns, whole_run_speed
from velodrome.advise.tuning.remote import RemoteBench
from velodrome.advise.tuning.result import (
    CUT_SHORT,
    NOT_REACHED,
    OUT_OF_TIME,
    SHARE_OF_CHECK,
    Skipped,
    TrialResult,
    Tuning,
    Verified,
    pays,
)
from velodrome.advise.tuning.techniques import NUMERICS, find_techniques
from velodrome.errors import ArgumentError, VelodromeError
from velodrome.recipes.read import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.advise.tuning.facts import BenchFacts, Round
    from velodrome.advise.tuning.measure import Agreement, Arm, Rounds
    from velodrome.advise.tuning.rehearsal import Rehearsal
    from velodrome.advise.tuning.setup import Change, Setup
    from velodrome.advise.tuning.techniques import Technique
    from velodrome.recipes.schema import Recipe

__all__ = ["Search"]

_ROUNDS = 5
_LEAST_GAIN = 0.02  # less is not worth a line in a recipe, whatever was measured
_LONGEST_ROUND_S, _SHORTEST_ROUND_S = 1.0, 0.1
_MOST_VAL_LOSS = 0.05  # how much worse the validation loss may be at the end of the check, relative
_REHEARSED_STEPS = 200


class Search:
    """Tries the techniques of one recipe within a time.

    Args:
        setup: the recipe as it is.
        recipe: the same, checked.
        seconds: that all of it may take.
        numerics: the most that may happen to the numbers: "equal", "close" or "changed". What a technique does to them is measured, where the
            recipe gives the same bits twice; where it does not, what is known of the technique counts.
        batch_size: try larger batches too.
        rounds: of each comparison.
        round_s: of training in a round; None follows from the time.
        make_arm: makes a configuration; a process of its own each, where it is left out.
        say: gets a line about each trial.
        clock: in seconds; another one for tests.
    Raises:
        ArgumentError: there is no time, or `numerics` is unknown.
    """

    def __init__(
        self,
        setup: Setup,
        recipe: Recipe,
        *,
        seconds: float,
        numerics: str = "changed",
        batch_size: bool = False,
        rounds: int = _ROUNDS,
        round_s: float | None = None,
        make_arm: Callable[[Setup], Any] | None = None,  # Any: an Arm that can rehearse
        say: Callable[[str], Any] = print,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if numerics not in NUMERICS:
            raise ArgumentError(f"numerics={numerics!r} is unknown. Use {', '.join(NUMERICS[:-1])} or {NUMERICS[-1]}.")
        if not seconds > 0:
            raise ArgumentError(f"seconds={seconds!r} leaves no time for a trial. Give a number above 0, such as 180.")
        self._setup, self._recipe = setup, recipe
        self._seconds, self._numerics, self._batch_size = seconds, numerics, batch_size
        self._rounds, self._round_s = rounds, round_s or _LONGEST_ROUND_S
        self._fixed_round = round_s is not None
        self._make_arm = make_arm or (lambda setup: RemoteBench(setup, timeout_s=max(30.0, seconds / 3)))
        self._say, self._clock = say, clock
        self._begun = clock()
        self._open: list[Any] = []
        self._noise_s = 0.0
        self._placed: tuple[str, ...] = ()
        self._reference: tuple[BenchFacts, float] | None = None
        self._to_come: tuple[list[str], Any] = ([], None)
        """techniques whose turn has not ended, and what the first of them starts from"""
        self._under_way = ""
        self.result = Tuning(recipe=setup.recipe, budget_s=seconds)

    def run(self) -> Tuning:
        """Search; an interruption leaves `result` with what is known so far."""
        result = self.result
        try:
            self._search()
        except KeyboardInterrupt:
            result.is_interrupted = True
            self._list_not_reached()
        finally:
            for arm in list(self._open):
                self._close(arm)
            result.seconds = self._clock() - self._begun
        return result

    # -- the parts --------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        result = self.result
        begun = self._clock()
        baseline, twin = self._make(self._setup), self._make(self._setup)
        facts = baseline.start()
        twin_facts = twin.start()
        start_s = self._clock() - begun  # of two at once: no less than that of one
        result.start_s = start_s
        result.facts = facts
        same = agree((facts.loss, facts.digest), (twin_facts.loss, twin_facts.digest))
        result.is_repeatable = same.kind == "equal bits"
        # Several processes share a GPU's memory: the data of the later ones are to lie where those of the first one do.
        self._placed = ("train.resident=true",) if facts.is_resident and facts.device == "cuda" else ()
        names = [each.name for each in self._techniques(self._recipe, facts)]
        num_choices = sum(
            len(each.choices) for each in self._techniques(self._recipe, facts) if not self._why_untried(each)
        )
        self._choose_round(num_choices, start_s)
        best = (self._setup, baseline, facts)
        self._to_come = names, best
        self._measure_noise(baseline, twin, facts.steps_per_epoch)
        self._reference = facts, 0.0
        result.trial_s = start_s + self._noise_s
        for index, name in enumerate(names):
            self._to_come = names[index:], best
            # Looked up when its turn comes: what was taken before may rule it out.
            technique = self._technique(name, best)
            if why := self._why_untried(technique):
                result.skipped.append(Skipped(technique=name, why=why))
                continue
            for change in technique.choices:
                if self._left() < result.trial_s:
                    result.skipped.append(Skipped(technique=name, why=OUT_OF_TIME, change=str(change)))
                    continue
                began_trial, self._under_way = self._clock(), str(change)
                trial, arm, its_facts = self._try(technique, change, best)
                result.trial_s = max(start_s, self._clock() - began_trial)
                result.trials.append(trial)
                self._under_way = ""
                self._say(trial.line)
                if trial.is_taken and its_facts is not None:
                    if best[1] is not baseline:
                        self._close(best[1])
                    best = (best[0].with_change(change), arm, its_facts)
                    # After another batch size there is nothing to compare with before it.
                    reference, limit = self._reference if technique.compares else (its_facts, 0.0)
                    self._reference = reference, max(limit, technique.limit if technique.compares else 0.0)
                    result.change = best[0].change
                elif arm is not None:
                    self._close(arm)
                    if technique.is_monotone and trial.speed_up < 1:
                        break
        self._to_come = [], best
        if result.change is not None:
            self._verify(baseline, facts, best)

    def _list_not_reached(self) -> None:
        """List what an interruption left untried."""
        names, best = self._to_come
        known = {(each.technique, str(each.change)) for each in (*self.result.trials, *self.result.skipped)}
        for place, name in enumerate(names):
            technique = self._technique(name, best)
            if why := self._why_untried(technique):
                if (name, "") not in known:
                    self.result.skipped.append(Skipped(technique=name, why=why))
                continue
            for change in technique.choices:
                if (name, str(change)) not in known:
                    why = CUT_SHORT if place == 0 and self._under_way == str(change) else NOT_REACHED
                    self.result.skipped.append(Skipped(technique=name, why=why, change=str(change)))

    def _techniques(self, recipe: Recipe, facts: BenchFacts) -> list[Technique]:
        return find_techniques(recipe, facts, batch_size=self._batch_size)

    def _technique(self, name: str, best: tuple[Setup, Any, BenchFacts]) -> Technique:
        """Return a technique as it stands to the best configuration so far."""
        setup, _, facts = best
        recipe = load_recipe(setup.recipe, setup.all_overrides).recipe if setup.change.fields else self._recipe
        return next(each for each in self._techniques(recipe, facts) if each.name == name)

    def _why_untried(self, technique: Technique) -> str:
        """Return why nothing of a technique is tried; nothing where it is."""
        if technique.why_not:
            return technique.why_not
        known = technique.at_best if self.result.is_repeatable else technique.numerics
        return "" if self._allows(known) else f'it may change the numbers, and numerics="{self._numerics}"'

    def _allows(self, numerics: str) -> bool:
        """Return whether so much may happen to the numbers."""
        return NUMERICS.index(numerics) <= NUMERICS.index(self._numerics)  # type: ignore[arg-type]

    def _left(self) -> float:
        """Return the seconds that trials may still take."""
        return self._begun + self._seconds * (1 - SHARE_OF_CHECK) - self._clock()

    def _choose_round(self, num_choices: int, start_s: float) -> None:
        """Share the time that is left out among the trials."""
        if not self._fixed_round:
            slot = max(0.0, self._left()) / (num_choices + 1) - start_s
            # A turn trains and evaluates for about as long each, for two configurations.
            self._round_s = min(_LONGEST_ROUND_S, max(_SHORTEST_ROUND_S, slot / (4 * self._rounds)))

    def _make(self, setup: Setup) -> Any:
        arm = self._make_arm(setup)
        self._open.append(arm)
        return arm

    def _close(self, arm: Any) -> None:
        self._open.remove(arm)
        arm.close()

    def _with_data_placed(self, setup: Setup) -> Setup:
        """Return a configuration whose data lie where those of the recipe as it is do."""
        if "train.resident" in setup.change.fields:
            return setup
        return replace(setup, overrides=(*setup.overrides, *self._placed))

    def _compare(self, first: Arm, second: Arm, steps: tuple[int | None, int | None]) -> Rounds:
        comparison = take_turns(first, second, steps=steps, rounds=self._rounds, seconds=self._round_s)
        if comparison.is_disturbed:
            self.result.num_disturbed += 1
            self.result.others_fraction = max(self.result.others_fraction, comparison.others_fraction)
        return comparison

    def _is_faster(self, comparison: Rounds) -> bool:
        return comparison.speed_up > 1 + max(_LEAST_GAIN, self.result.noise)

    def _measure_noise(self, baseline: Arm, twin: Arm, steps: int | None) -> None:
        """Compare the baseline with another one like it: how far apart are two equal things here?"""
        begun = self._clock()
        comparison = self._compare(baseline, twin, (steps, steps))
        self._noise_s = self._clock() - begun
        self._close(twin)
        self.result.noise = comparison.spread
        self.result.baseline = comparison.first
        self._say(f"baseline against itself: {100 * comparison.spread:.1f} % apart, the noise floor")

    def _try(
        self, technique: Technique, change: Change, best: tuple[Setup, Any, BenchFacts]
    ) -> tuple[TrialResult, Any, BenchFacts | None]:
        """Measure one choice against the best so far."""
        setup, incumbent, facts = best
        tried = self._with_data_placed(setup.with_change(change))
        result = TrialResult(technique=technique.name, change=change, numerics=technique.numerics)
        num_open = len(self._open)
        try:
            arm = self._make(tried)
            its_facts = arm.start()
            agreement = None
            if technique.compares:
                # With the recipe as it is, not with the best so far: several small differences are a large one.
                assert self._reference is not None
                reference, limit = self._reference
                agreement = agree((reference.loss, reference.digest), (its_facts.loss, its_facts.digest))
                result = replace(result, agreement=agreement)
                step = agree((facts.loss, facts.digest), (its_facts.loss, its_facts.digest))
                if step.difference > technique.limit:
                    return replace(result, why=_too_far(facts.loss, its_facts.loss)), arm, None
                if agreement.difference > max(limit, technique.limit):
                    return replace(result, why=_too_far(reference.loss, its_facts.loss)), arm, None
            if why := self._why_refused(agreement, facts.loss, its_facts.loss):
                return replace(result, why=why), arm, None
            comparison = self._compare(_Incumbent(incumbent), arm, (facts.steps_per_epoch, its_facts.steps_per_epoch))
        except _IncumbentError as error:
            raise error.__cause__ or error from None
        except Exception as error:  # whatever it is, this choice is not possible, and the others may be
            for arm in self._open[num_open:]:
                self._close(arm)
            message = error.message if isinstance(error, VelodromeError) else f"{type(error).__name__}: {error}"
            return replace(result, why=f"not possible: {message}"), None, None
        result = replace(result, speed_up=comparison.speed_up, rounds=comparison.second, against=comparison.first)
        needed = 1 + max(_LEAST_GAIN, self.result.noise)
        slower_rounds = sum(ratio <= 1 for ratio in comparison.ratios)
        if comparison.speed_up < needed or slower_rounds > len(comparison.ratios) // 4:
            return replace(result, why="no gain" if comparison.speed_up > 1 / needed else "slower"), arm, its_facts
        if technique.pays_later:
            pays_after, total = _break_even(comparison, facts, its_facts), its_facts.total_steps
            result = replace(result, break_even_steps=pays_after, total_steps=total)
            if total is not None and pays_after > total:
                return replace(result, why="does not pay in this run"), arm, its_facts
        return replace(result, is_taken=True, why="taken"), arm, its_facts

    def _why_refused(self, agreement: Agreement | None, before: float, after: float) -> str:
        """Return what is wrong with the numbers of the first steps; nothing where nothing is."""
        if not math.isfinite(after):
            return _too_far(before, after)
        if agreement is None or not self.result.is_repeatable or self._allows(agreement.numerics):
            return ""
        return f'the numbers are {agreement.kind}, and numerics="{self._numerics}"'

    def _verify(self, baseline: Any, facts: BenchFacts, best: tuple[Setup, Any, BenchFacts]) -> None:
        """Take turns with the beginning once more, and run the first steps of the real recipe both ways, evaluation included."""
        self._say(f"checking the whole: {best[0].change}")
        comparison = self._compare(baseline, best[1], (facts.steps_per_epoch, best[2].steps_per_epoch))
        if not (self._is_faster(comparison) and pays(_of_the_run(comparison, facts, best[2]))):
            best, comparison = self._find_part(baseline, facts, best, comparison)
        setup, arm, its_facts = best
        step_s = max(comparison.first[-1].step_s, 1e-6)
        left = max(1.0, self._begun + self._seconds - self._clock())
        steps = max(10, min(_REHEARSED_STEPS, int(left / 4 / step_s), its_facts.total_steps or _REHEARSED_STEPS))
        val_samples = None
        if facts.num_val_samples is not None and comparison.first[-1].evaluation_s > left / 4:
            val_samples = max(1, int(facts.num_val_samples * left / 4 / comparison.first[-1].evaluation_s))
        # Larger batches make fewer steps of the same samples: what was learned from equally many is compared.
        factor = (
            setup.change.fields.get("train.batch_size", self._recipe.train.batch_size) / self._recipe.train.batch_size
        )
        before: Rehearsal = baseline.rehearse(steps=steps, val_samples=val_samples)
        after: Rehearsal = arm.rehearse(steps=max(1, round(steps / factor)), val_samples=val_samples)
        worse = _relative(before.loss, after.loss)
        has_equal_bits = before.digest == after.digest or self._numerics != "equal" or not self.result.is_repeatable
        is_as_good = worse <= _MOST_VAL_LOSS and has_equal_bits  # false for NaN
        self.result.verified = Verified(
            speed_up=comparison.speed_up, steps=before.steps, before=before, after=after, loss_change=worse,
            is_faster=self._is_faster(comparison), is_as_good=is_as_good, has_equal_bits=has_equal_bits,
            run_speed_up=_of_the_run(comparison, facts, its_facts), rounds=comparison.second, baseline=comparison.first,
        )  # fmt: skip

    def _find_part(
        self, baseline: Any, facts: BenchFacts, whole: tuple[Setup, Any, BenchFacts], comparison: Rounds
    ) -> tuple[tuple[Setup, Any, BenchFacts], Rounds]:
        """Return a part of what was taken that is faster than the beginning, or the whole where none is found in time.

        All but one first, then each alone: where a measurement went wrong, it was most likely that of the one that gained most.
        """
        taken = sorted((each for each in self.result.trials if each.is_taken), key=lambda each: -each.speed_up)
        parts = [[each for each in taken if each is not left_out] for left_out in taken]
        parts += [[each] for each in taken if len(taken) > 2]
        for part in filter(None, parts):  # of one change nothing is left
            if self._begun + self._seconds - self._clock() < 2 * self.result.trial_s:
                break
            setup = self._setup
            for trial in (each for each in self.result.trials if each in part):  # in the order in which they were taken
                setup = setup.with_change(trial.change)
            arm = self._make(self._with_data_placed(setup))
            try:
                its_facts = arm.start()
                found = self._compare(_Incumbent(baseline), arm, (facts.steps_per_epoch, its_facts.steps_per_epoch))
            except _IncumbentError as error:
                raise error.__cause__ or error from None
            except VelodromeError:  # it needs what was left out
                self._close(arm)
                continue
            self._say(f"  not faster ({comparison.speed_up:.2f}x); {setup.change} alone: {found.speed_up:.2f}x")
            if self._is_faster(found) and pays(_of_the_run(found, facts, its_facts)):
                self._close(whole[1])
                why = f"left out again: with it all were {comparison.speed_up:.2f}x"
                self.result.trials = [
                    replace(each, is_taken=False, why=why) if each.is_taken and each not in part else each
                    for each in self.result.trials
                ]
                self.result.change = setup.change
                return (setup, arm, its_facts), found
            self._close(arm)
        return whole, comparison


class _IncumbentError(Exception):
    """The best so far failed, not what is tried against it: nothing can be tried any more."""


class _Incumbent:
    """The best so far, whose errors are told from those of the one on trial."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self.start, self.close = arm.start, arm.close

    def round(self, seconds: float) -> Round:
        try:
            return self._arm.round(seconds)
        except Exception as error:
            raise _IncumbentError from error


def _too_far(before: float, after: float) -> str:
    return f"the loss of the first steps is too far off: {after:.6g} instead of {before:.6g}"


def _break_even(comparison: Rounds, facts: BenchFacts, its_facts: BenchFacts) -> int:
    """Return after how many steps what was spent at the start has come back."""
    spent = max(0.0, its_facts.warm_up_s - facts.warm_up_s)
    steps = facts.steps_per_epoch
    saved = sum(a.epoch_s(steps) - b.epoch_s(steps) for a, b in zip(comparison.first, comparison.second, strict=True))
    a_step = saved / len(comparison.first) / (steps or 1)
    return math.ceil(spent / a_step) if a_step > 0 else 1 << 62


def _of_the_run(comparison: Rounds, facts: BenchFacts, its_facts: BenchFacts) -> float | None:
    """Return how many times faster the whole run is, its start included; None where its length is not known."""
    if facts.total_steps is None or not facts.steps_per_epoch:
        return None
    epochs = facts.total_steps / facts.steps_per_epoch
    epoch_s = median_of([each.epoch_s(facts.steps_per_epoch) for each in comparison.first])
    return whole_run_speed(comparison.speed_up, epoch_s, epochs, (facts.warm_up_s, its_facts.warm_up_s))


def _relative(before: float, after: float) -> float:
    """Return how much larger the loss has become, relative: NaN where it is not known, infinite above a loss of 0."""
    if before == after:
        return 0.0
    if before:
        return (after - before) / abs(before)
    return math.nan if math.isnan(after) else math.copysign(math.inf, after)
