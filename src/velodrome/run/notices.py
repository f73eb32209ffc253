"""What a run says to people: lines that must be seen, each once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from velodrome.loop.progress import StopReason
from velodrome.record.sink import say_on_stderr
from velodrome.step.parameters import held_in_vain, unheld_parameters
from velodrome.step.schedules import NO_SCHEDULE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import nn

    from velodrome.checkpoint.space import Room
    from velodrome.distributed.pace import Pace
    from velodrome.distributed.world import World
    from velodrome.loop.progress import Budget, Progress
    from velodrome.run.files import RunFiles
    from velodrome.run.keeping import Verdict
    from velodrome.step.windows import Windows

__all__ = ["Notices"]


class Notices:
    """Says each line once a run, from one process.

    Args:
        files: shows lines, and keeps them in the run's log.
        world: the processes that train together.
    """

    def __init__(self, files: RunFiles, world: World) -> None:
        self._files = files
        self._world = world
        self._said: set[str] = set()
        self._skipped_before = 0

    def warn(self, line: str) -> None:
        """Show a line that must be seen; it holds for this process and perhaps for no other."""
        if self._world.is_main:
            self.warn_all(line)
        elif line not in self._said:
            self._said.add(line)
            say_on_stderr(f"[rank {self._world.rank}] warning: {line}")

    def warn_all(self, line: str) -> None:
        """Show a line that must be seen; it holds for all processes, and one says it."""
        if line not in self._said:
            self._said.add(line)
            self._files.warn(f"warning: {line}")

    def of_parameters(self, model: nn.Module, windows: Windows) -> None:
        """Say which parameters will not change although they could, and what the optimizers hold for nothing."""
        optimizers = [updates.optimizer for updates in windows.by_name.values()]
        unheld, vain = unheld_parameters(model, optimizers), held_in_vain(model, optimizers)
        if unheld:
            # Alone the others are no mistake: a loss may have parameters of its own.
            foreign = (
                f" {_listed(vain.foreign)} that the optimizer holds are none of the model's: if layers were replaced after it was made, "
                f"make it anew from model.parameters()."
            )
            self.warn_all(
                f"{_listed(unheld)} can be trained, but no optimizer holds them: they will not change. Give them to the optimizer, or "
                f"name them in freeze=.{foreign if vain.foreign else ''}"
            )
        if vain.frozen:
            self._files.say(f"{_listed(vain.frozen)} are held by an optimizer, but frozen: they will not change.")

    def watch_gradients(self, model: nn.Module, windows: Windows) -> None:
        """Say before the first update of each optimizer which of its parameters the loss does not depend on."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def show(unused: list[nn.Parameter]) -> None:
            own = [names[id(each)] for each in unused if id(each) in names]
            if own:
                self.warn_all(
                    f"{_listed(own)} got no gradient from the first batch: "
                    f"its loss does not depend on them. They change only if a later one does; if that is meant, name them in freeze=."
                )

        for updates in windows.by_name.values():
            updates.on_first_gradients = show

    def of_room(self, room: Room | None) -> None:
        """Say when the checkpoints to come will not fit on their volume."""
        if room is not None and room.problem:
            self.warn_all(room.problem)

    def of_schedules(self, windows: Windows) -> None:
        """Say how the learning rate will go."""
        for name, updates in windows.by_name.items():
            if updates.schedule is not NO_SCHEDULE:
                whose = f" of {name}" if len(windows) > 1 else ""
                self._files.say(f"learning rate{whose}: {updates.schedule.describe()}")

    def of_schedule_lengths(self, windows: Windows) -> None:
        """Say when an optimizer makes more updates than its schedule was fitted to: it makes several a batch, say."""
        for name, updates in windows.by_name.items():
            past_end = updates.schedule.past_end
            if past_end is not None:
                made, planned = past_end
                self.warn_all(
                    f"The learning rate of {name!r} was fitted to {planned:,} updates, one a batch, and {made:,} were made: "
                    f"it stays at its last value. Give the length: scheduler_args={{'length': '{2 * made} steps'}}, say."
                )

    def of_skipped(self, windows: Windows, progress: Progress, epoch: int) -> None:
        """Say how many updates fp16 skipped in this epoch."""
        skipped, self._skipped_before = windows.skipped - self._skipped_before, windows.skipped
        if skipped and skipped == progress.steps_in_epoch:
            self.warn_all(
                f"fp16: all {skipped} updates of epoch {epoch} overflowed and were skipped: nothing was trained. If the loss scale does not "
                f'find its size soon, a loss or gradients are not finite; try precision="bf16" or "fp32".'
            )
        elif skipped:
            self._files.say(
                f"fp16: {skipped} of {progress.steps_in_epoch} updates overflowed and were skipped in epoch "
                f"{epoch}; the loss scale is adapted."
            )

    def of_pace(self, pace: Pace) -> None:
        """Say which process the others wait for."""
        line = pace.complaint()
        if line:
            self.warn_all(line)

    def of_whole_pace(self, pace: Pace) -> None:
        """Say how long a step took in each process."""
        line = pace.describe()
        if line:
            self._files.say(line)

    def of_used_up_budget(self, budget: Budget, progress: Progress) -> None:
        """Say that a trainer which has trained before has done all that is asked for, and what to ask for instead."""
        reason = budget.exhausted_by(progress)
        if reason is None or not progress.steps_done:
            return
        given, more = {
            StopReason.EPOCHS: (f"epochs={budget.epochs}", f"epochs={progress.epochs_done + 1} for one more"),
            StopReason.STEPS: (f"steps={budget.steps}", f"steps={progress.steps_done + (budget.steps or 0)} for as many more"),
            StopReason.SECONDS: (f"seconds={budget.seconds}", f"more than the {progress.seconds:.3g} s that are over"),
        }[reason]  # fmt: skip
        self._files.say(f"{reason} Nothing was trained: {given} counts from the trainer's first epoch. Give {more}.")

    def of_epoch(self, verdict: Verdict, row: Mapping[str, Any], *, monitor: str, marks_best: bool) -> None:
        """Say what is wrong with an epoch's values and does not stop the run.

        Args:
            verdict, row: of the epoch.
            monitor: the value that decides.
            marks_best: whether the best epoch is marked somewhere, or was asked for.
        """
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value) and name.partition("/")[0] != "lr":
                self.warn_all(f"{name} is {value} in epoch {row['epoch']}. Such an epoch is never the best one.")
        if not verdict.monitor and marks_best:
            known = ", ".join(name for name in row if "/" in name)
            self.warn_all(
                f"checkpoint monitors {monitor!r}, which is not among the values of an epoch ({known}): no epoch is marked as the best."
            )


def _listed(names: Sequence[str]) -> str:
    """Return the first few of many names."""
    shown = ", ".join(names[:5])
    return f"{len(names)} parameters ({shown}{', ...' if len(names) > 5 else ''})"
