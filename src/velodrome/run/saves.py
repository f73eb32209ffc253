"""The checkpoints of a run: asked for, due, made when the batch is over, and told of when they are on the disk.

```text
due         by steps, by time, by the end of an epoch, or because somebody asked
waits       for the end of the batch: what the loop still does with it (log, measure, a second optimizer's step) belongs to it
made        after the save before it has ended, and after the device said that all is finite
ended       at once, or later where it is written in the background: callbacks are told then
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.loop.progress import StopReason
from velodrome.nonfinite.checks import check_finite_weights
from velodrome.record.clock import billed
from velodrome.resume.saving_together import SavingTogether

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.run.run import Run

__all__ = ["Saves"]


class Saves:
    """Makes the checkpoints of one run.

    Args:
        run: whose `save_is_due` is set where there is something to do when the batch is over, and nothing else is looked at per batch.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.clock = run.clock
        self.together = SavingTogether(run)
        """what several processes do for one checkpoint"""
        self.waits_for_batch = False
        """a checkpoint is made when the batch is over"""
        run.files.checkpoints.notify = self._hear

    def ask(self) -> Path | None:
        """Write a checkpoint now; several processes, of which perhaps only this one asks, write it when they next agree on anything."""
        if self._run.is_alone or not self._run.is_under_way:
            return self.save(together=False)
        self._run.consensus.save_was_asked = True
        return None

    def plan(self) -> None:
        """A save is due after this update, or was agreed on: it is made when the batch is over."""
        if self._run.is_alone or self.together.due():
            self._wait_for_batch()
        self._run.save_is_agreed = False

    def make_if_due(self) -> None:
        """The batch is over: write the checkpoint that waited for it; learn what came of one that was written meanwhile."""
        self._run.save_is_due = False
        self.end()
        if self.waits_for_batch:
            self.save(in_background=True)

    def make_what_waits(self) -> None:
        """The training loop is over, and all processes meet here: write the checkpoint that waited for either."""
        self.end()
        if self.waits_for_batch or self.together.waits or self._run.save_is_agreed:
            self.save(in_background=True)

    @billed("saving")
    def save(self, *, together: bool = True, in_background: bool = False) -> Path | None:
        """Write a checkpoint now; None when this step has one, when nothing is written at all, or when the disk failed.

        Args:
            together: every process of several is here; else the one that writes saves the weights alone.
            in_background: where the policy says so, write it while training goes on; None then.
        Raises:
            NumericsError: a weight is not finite; such weights are never saved.
        """
        run = self._run
        is_resumable = not run.position.is_in_batch
        in_background = in_background and run.keeping.policy.background
        if is_resumable or not run.is_alone:
            run.save_is_due = self.waits_for_batch = False
        can_save = self._end_those_before(is_resumable=is_resumable, in_background=in_background)
        if can_save or not run.is_alone:
            run.nonfinite.read_flags()
        if together and not run.is_alone:
            can_save = self.together.meet(can_save=can_save)
            run.save_is_agreed = False  # what was agreed on is made here, or waits
            if not can_save and self.together.is_made:
                run.nonfinite.after_save()
        if not can_save:
            return None
        if run.is_alone and not is_resumable:
            self._wait_for_batch()  # and is made once more, as one that a run can go on from
        self._write(in_background=in_background)
        if is_resumable:
            run.nonfinite.after_save()
        run.keeping.count_from(run.progress)
        return None if in_background else self.end()

    def end(self) -> Path | None:
        """Tell of the saves that ended, and return where the last of them is; stop the run when too many failed."""
        run, path = self._run, None
        for outcome in run.files.checkpoints.end():
            path = outcome.path
            if path is None:
                run.keeping.forget(outcome.step)
            else:
                run.interruption.count_save(outcome.seconds)
                run.tell("on_checkpoint", path)
        if run.files.checkpoints.has_given_up and run.stop_requested is None:
            run.request_stop(StopReason.NOT_SAVED)
        return path

    # -- inner works ------------------------------------------------------------------------------------------------

    def _end_those_before(self, *, is_resumable: bool, in_background: bool) -> bool:
        """Have the save before this one end, and return whether a checkpoint of this step is to be written: the one decision.

        It is looked at twice because what ends may change it: a save of this very step that failed, or a callback that is told of one
        and saves. In the background training waits for nothing that would not be followed by a save.
        """
        files, progress = self._run.files.checkpoints, self._run.progress
        if in_background and not files.can_save(progress, is_resumable=is_resumable):
            return False
        files.wait(is_a_stall=in_background)
        self.end()
        return files.can_save(progress, is_resumable=is_resumable)

    def _write(self, *, in_background: bool) -> None:
        run, averaging = self._run, self._run.averaging
        step = run.progress.steps_done
        run.keeping.begin_save(run.progress)
        with averaging.raw(), run.windows.evaluating():
            check_finite_weights(run.model.named_parameters(), step=step)
            check_finite_weights(averaging.named_parameters(), step=step, what="averaged weight")
            run.files.checkpoints.save(
                run.model,
                run.progress,
                keep=run.keeping.kept_steps,
                averaging=averaging,
                more=run.going_on.collect,
                in_background=in_background,
            )

    def _wait_for_batch(self) -> None:
        self.waits_for_batch = self._run.save_is_due = True

    def _hear(self) -> None:
        self._run.save_is_due = True  # from another thread: nothing but this, which the loop looks at after every batch
