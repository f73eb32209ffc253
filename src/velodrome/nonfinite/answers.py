"""What a run does about a loss or a gradient that is not finite: stop, skip what led there, or go back.

Nothing of it has reached the weights: `step/guard.py` looks before, and raises `NonFinite`. Whoever makes updates hands that to
`answer`.

```text
stop        NumericsError, with a bundle of what led there
skip        the micro-batch, or the update whose gradients are bad, counts for nothing; too many in a row stop the run
rollback    weights, optimizers, schedules and averages are those of the last good log point again; the data go on
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from velodrome.errors import ArgumentError, NumericsError, nearest
from velodrome.nonfinite.facts import NonFiniteFacts, collect_facts, say_what_happened, say_what_next
from velodrome.nonfinite.snapshot import RunSnapshot
from velodrome.seeding import get_random_state
from velodrome.step.guard import NonFinite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from velodrome.run.run import Run
    from velodrome.step.precision import Precision
    from velodrome.step.updates import Updates

__all__ = ["Rollback", "Skip", "Stop", "check_policy", "make_answer"]

POLICIES = ("stop", "skip", "rollback")
MAX_SKIPS_IN_A_ROW = 10
MAX_ROLLBACKS_IN_A_ROW = 3


def check_policy(on_nonfinite: object, precision: Precision) -> str:
    """Return the policy.

    Raises:
        ArgumentError: it is unknown, or the precision has one of its own.
    """
    if on_nonfinite not in POLICIES:
        raise ArgumentError(f"on_nonfinite={on_nonfinite!r} is unknown. {nearest(str(on_nonfinite), POLICIES)}")
    if on_nonfinite == "rollback" and precision.needs_scaler:
        raise ArgumentError(
            'on_nonfinite="rollback" was given with precision="fp16", whose scaler skips updates that are not finite and looks for '
            'another scale: overflow is part of it. Use "stop" or "skip", or precision="bf16".'
        )
    return str(on_nonfinite)


class Stop:
    """Ends the run with an error that says what was bad, where, and what to do next.

    Args:
        run: whose numbers they are.
    """

    name = "stop"
    description = "stop with an error; the weights stay clean"

    def __init__(self, run: Run) -> None:
        self.run = run
        self._own: NonFiniteFacts | None = None
        self._own_bundle: Path | None = None

    def enter_loop(self) -> None:
        """A training loop begins: weights and schedules are there."""
        for updates in self.run.windows.by_name.values():
            if updates.guard.waits:
                self.run.notices.warn_all(updates.guard.waits)

    def after_save(self) -> None:
        """A checkpoint was written."""

    def at_log_point(self) -> None:
        """All was finite so far: have the next update of each optimizer look at every gradient."""
        for updates in self.run.windows.by_name.values():
            updates.guard.looks_at_gradients = True

    def read_flags(self) -> None:
        """Read what the device has found, before anything is saved.

        Raises:
            NumericsError: something that is not finite.
        """
        for updates in self.run.windows.by_name.values():
            try:
                updates.guard.read_flag()
            except NonFinite as found:
                self.answer(found, updates)

    def state_dict(self) -> dict[str, Any]:
        """Return what later answers depend on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""

    def answer(self, found: NonFinite, updates: Updates) -> None:
        """Do about it what the policy says; return when training goes on.

        Raises:
            NumericsError: it does not.
        """
        run = self.run
        is_own = found.place != "elsewhere"
        if is_own:
            self._own = collect_facts(run, found, updates)
            self._own_bundle = self._write_bundle(self._own)
        if not run.is_alone and found.place == "loss" and found.updates_ago is None:
            self._leave_to_the_others(updates)
            return
        own, self._own = self._own, None
        if own is not None and not is_own and own.step != run.progress.steps_done + 1:
            own = None  # of an update that was made without it
        told = [own] if run.is_alone else run.world.gather(own)
        facts = next(each for each in told if each is not None)
        try:
            self._settle(facts, self._own_bundle if own is not None else None, found, updates)
        except NumericsError as error:
            run.note(error)
            raise error from None

    # -- inner works ------------------------------------------------------------------------------------------------

    def _settle(self, facts: NonFiniteFacts, bundle: Path | None, found: NonFinite, updates: Updates) -> None:
        """Act on it, in every process at once."""
        del found, updates
        raise self._error(facts, bundle, "")

    def _leave_to_the_others(self, updates: Updates) -> None:
        """Count a micro-batch without items: the flag travels with the gradients, and all processes act on it together."""
        updates.guard.flag = updates.guard.flag + 1.0
        updates.skip()
        self.run.progress.micro_batches_done += 1
        if updates.is_full:
            self.run.update(updates)

    def _error(self, facts: NonFiniteFacts, bundle: Path | None, why: str) -> NumericsError:
        weights = (
            "Such weights are never saved."
            if facts.first_kind == "weight"
            else f"The weights are those of step {facts.step - 1} and were not touched."
        )
        parts = [
            say_what_happened(facts, is_alone=self.run.is_alone),
            *([why] if why else []),
            weights,
            say_what_next(facts, bundle, self.run.files.path),
        ]
        return NumericsError(" ".join(parts), bundle=bundle, **facts.as_json())

    def _say(self, facts: NonFiniteFacts, what: str) -> None:
        self.run.notices.warn(f"{say_what_happened(facts, is_alone=self.run.is_alone)} {what}")

    def _write_bundle(self, facts: NonFiniteFacts) -> Path | None:
        """Keep what led there; a disk that fails is told and changes nothing else."""
        run = self.run
        if run.files.path is None or facts.batch is None:
            return None
        from velodrome.nonfinite.bundle import write_bundle

        is_clean = facts.first_kind not in ("weight", "buffer")
        try:
            return write_bundle(
                run.files.path,
                {**facts.as_json(), "policy": self.name},
                batch=run.position.batch,
                model=run.model if is_clean else None,
                random=get_random_state(run.trainer.device),
            )
        except OSError as error:
            run.files.warn(f"warning: The batch of step {facts.step} could not be kept: {error}.")
            return None


class Skip(Stop):
    """Goes on without what is bad. The model's buffers are put back, too: BatchNorm has seen the batch by then."""

    name = "skip"
    description = f"skip it; stop after {MAX_SKIPS_IN_A_ROW} in a row"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._losses_in_a_row = 0
        self._updates_in_a_row = 0
        self._good_at_loss = -1
        self._steps_at_update = -1
        self._num_losses = 0
        self._buffers: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] = []
        for updates in run.windows.by_name.values():
            updates.guard.on_flags = lambda num, updates=updates: self._count(updates, num)

    def enter_loop(self) -> None:
        """Keep the buffers, and from now on after each micro-batch."""
        super().enter_loop()
        self._buffers = list(self.run.model.buffers())
        self._kept = [buffer.detach().clone() for buffer in self._buffers]
        if self._buffers:
            self.run.after_micro_batch = self._after_micro_batch

    def state_dict(self) -> dict[str, Any]:
        """Return the counts; what was skipped is counted with the updates."""
        return {
            "losses_in_a_row": self._losses_in_a_row,
            "updates_in_a_row": self._updates_in_a_row,
            "good_at_loss": self._good_at_loss,
            "steps_at_update": self._steps_at_update,
            "num_losses": self._num_losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)

    def _settle(self, facts: NonFiniteFacts, bundle: Path | None, found: NonFinite, updates: Updates) -> None:
        run = self.run
        self._put_buffers_back()
        if found.place == "loss":
            run.progress.micro_batches_done += 1
            run.train_phase.ignore_batch()
            self._count(updates, 1)
            in_a_row = self._count_loss()
            self._say(facts, "This batch is skipped.")
        else:
            run.train_phase.ignore_batch()
            updates.free_gradients()
            self._count(updates, 1)  # a window of which nothing is left, too
            steps = run.progress.steps_done
            in_a_row = self._updates_in_a_row = self._updates_in_a_row + 1 if steps == self._steps_at_update else 1
            self._steps_at_update = steps
            self._say(facts, "This update is skipped.")
        if in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise self._error(facts, bundle, f"It is number {in_a_row} in a row: skipping does not help.")

    def _leave_to_the_others(self, updates: Updates) -> None:
        self._put_buffers_back()
        self.run.train_phase.ignore_batch()
        assert self._own is not None
        facts, bundle = self._own, self._own_bundle
        self._say(facts, "This process's part of the batch is skipped.")
        if self._count_loss() >= MAX_SKIPS_IN_A_ROW:
            raise self._error(facts, bundle, f"It is number {MAX_SKIPS_IN_A_ROW} in a row: skipping does not help.")
        super()._leave_to_the_others(updates)

    def _count(self, updates: Updates, num: int) -> None:
        updates.skipped += num

    def _count_loss(self) -> int:
        """Return how many micro-batches in a row had a bad loss, this one included."""
        good = self.run.progress.micro_batches_done - self._num_losses - (1 if self.run.is_alone else 0)
        self._num_losses += 1
        self._losses_in_a_row = self._losses_in_a_row + 1 if good == self._good_at_loss else 1
        self._good_at_loss = good
        return self._losses_in_a_row

    def _after_micro_batch(self, loss: Tensor, items: Tensor | float, updates: Updates) -> None:
        """Take the place of the run's own: keep the buffers, too."""
        type(self.run).after_micro_batch(self.run, loss, items, updates)
        with torch.no_grad():
            torch._foreach_copy_(self._kept, self._buffers)  # pyright: ignore[reportPrivateImportUsage]

    def _put_buffers_back(self) -> None:
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._kept)  # pyright: ignore[reportPrivateImportUsage]


class Rollback(Stop):
    """Puts everything that updates change back to how it was when all was finite last; the data go on.

    Steps go on being counted: they number the updates that were made, also those that were undone, so that records never fold
    back. What was recorded stays.
    """

    name = "rollback"
    description = f"go back to the last good log point; stop after {MAX_ROLLBACKS_IN_A_ROW} in a row"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if run.windows.have_modes:
            raise ArgumentError(
                'on_nonfinite="rollback" was given with an optimizer that shows other weights in evaluation than in training, of which '
                'no copy can be put back between the two. Use "skip", or another optimizer.'
            )
        self._snapshot: RunSnapshot | None = None
        self._in_a_row = 0

    def enter_loop(self) -> None:
        """Take the first snapshot, of a run that begins or goes on."""
        super().enter_loop()
        # Of a lazy module there is nothing to copy before the first log point.
        if self._snapshot is None and not any(map(is_lazy, self.run.model.parameters())):
            self._snapshot = RunSnapshot.take(self.run)

    def after_save(self) -> None:
        """Take a snapshot: a run that goes on from this checkpoint has the same."""
        self._snapshot = RunSnapshot.take(self.run)

    def at_log_point(self) -> None:
        """Take a snapshot: since the last one every number was finite."""
        super().at_log_point()
        self._in_a_row = 0
        self._snapshot = RunSnapshot.take(self.run)

    def state_dict(self) -> dict[str, Any]:
        """Return the count; the snapshot is what the checkpoint itself holds."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._in_a_row = state["in_a_row"]

    def _settle(self, facts: NonFiniteFacts, bundle: Path | None, found: NonFinite, updates: Updates) -> None:
        del updates
        run, snapshot = self.run, self._snapshot
        if snapshot is None:
            raise self._error(facts, bundle, "There was no good log point yet to go back to.")
        if run.is_alone and found.place == "loss":
            run.progress.micro_batches_done += 1
        run.train_phase.ignore_batch()
        self._in_a_row += 1
        if self._in_a_row >= MAX_ROLLBACKS_IN_A_ROW:
            raise self._error(
                facts, bundle, f"It is number {self._in_a_row} since the last good log point: going back does not help."
            )
        snapshot.put_back(run)
        self._say(
            facts,
            f"Weights, optimizer and schedule go back from step {run.progress.steps_done} to step {snapshot.step}; the data go on.",
        )


def make_answer(policy: str, run: Run) -> Stop:
    """Return what answers for this policy."""
    return {"stop": Stop, "skip": Skip, "rollback": Rollback}[policy](run)
