"""One run under way: the loop's host (`velodrome.loop.host.LoopHost`), owned by the trainer. What it holds does the work.

```text
beginning, ending       a run begins and ends
phases                  the loops over batches
rows                    log points, and what is written there
saves                   checkpoints, and what follows one
consensus               what several processes agree on
averaged_statistics     averages at the ends of epochs
here                    steps, the ends of epochs, and what the loop and the trainer ask
```
"""

from __future__ import annotations

from dataclasses import InitVar, asdict, dataclass
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from velodrome.callbacks.base import Callback, listeners
from velodrome.cores import usable_cores
from velodrome.data.share import EMPTY
from velodrome.explain import Explanation
from velodrome.loop.host import NO_BATCH
from velodrome.loop.progress import Budget, Progress, StopReason
from velodrome.nonfinite.answers import make_answer
from velodrome.record.clock import Clock, billed
from velodrome.record.marks import make_marks
from velodrome.record.watch import NOBODY
from velodrome.resume.going_on import GoingOn
from velodrome.resume.settings import settings_of
from velodrome.run.averaged_statistics import average_epoch
from velodrome.run.beginning import begin_run
from velodrome.run.consensus import Consensus
from velodrome.run.ending import end_run
from velodrome.run.notices import Notices
from velodrome.run.phase import NO_PHASE
from velodrome.run.phases import Phases
from velodrome.run.position import Position
from velodrome.run.rows import Rows
from velodrome.run.saves import Saves
from velodrome.run.schedule_lengths import ScheduleLengths
from velodrome.step.checks import hint_at_device_assert
from velodrome.step.guard import NonFinite
from velodrome.stopping.interruption import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

    from velodrome.data.source import Source
    from velodrome.data_in_use import DataInUse
    from velodrome.distributed.world import World
    from velodrome.record.progress import ProgressView
    from velodrome.resume.resumption import Resumption
    from velodrome.run.files import RunFiles
    from velodrome.run.keeping import Keeping, Verdict
    from velodrome.run.phase import Phase
    from velodrome.step.averaging import NoAveraging
    from velodrome.step.determinism import Determinism
    from velodrome.step.engine import Engine
    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.phases import NoPhases
    from velodrome.step.precision import Precision
    from velodrome.step.updates import Updates
    from velodrome.step.windows import Windows
    from velodrome.stopping.interruption import Leave
    from velodrome.trainer import Trainer

__all__ = ["Run"]

# What is timed of a step, in the batches in which it is timed: methods, and the part of the bill that a call of each is.
_POINTS_OF_RUN = dict.fromkeys(("after_micro_batch", "after_update", "measure", "log"), "logging")
_POINTS_OF_UPDATES = {"backward": "backward", "update": "optimizer"}


@dataclass(kw_only=True, eq=False)
class Run:
    """What happens around the steps. Everything here is called by the loop or by the trainer.

    Args:
        trainer: handed to the callbacks; its model and optimizer are the ones trained.
        metrics: by name, see `resolve_metrics`.
        callbacks: in the order in which they are told.
        files: what is written.
        display: shows how far the run is.
        sources: turns data into batches.
        first_batch: checks.
        keeping: when to save, and which epochs are the best.
        windows: of the optimizers; empty in a trainer that only evaluates.
        precision: in which batches go through the model.
        engine_phases: what the engine is told of the loops around its batches.
        determinism: of the algorithms.
        averaging: of the weights.
        engine: passes batches through the model.
        log_every: a number of steps.
        seed: or None.
        world: the processes that train together.
        resumption: what the run goes on from, if anything.
        on_nonfinite: what is done about a loss or gradient that is not finite.
        stop_after_s: how long a run may take, in seconds.
    """

    trainer: Trainer
    metrics: Mapping[str, Any]
    callbacks: list[Callback]
    files: RunFiles
    display: ProgressView
    sources: DataInUse
    first_batch: FirstBatch
    keeping: Keeping
    windows: Windows
    precision: Precision
    engine_phases: NoPhases
    determinism: Determinism
    averaging: NoAveraging
    engine: Engine
    log_every: int
    seed: int | None
    world: World
    resumption: InitVar[Resumption]
    on_nonfinite: InitVar[str]
    stop_after_s: InitVar[float]

    def __post_init__(self, resumption: Resumption, on_nonfinite: str, stop_after_s: float) -> None:
        self.model = self.trainer.model
        self.is_alone = self.world.size == 1
        """whether no other process trains together with this one"""

        self.progress = Progress()
        self.clock = Clock(make_marks(self.trainer.device))
        self.watchers = NOBODY
        self.budget = Budget()
        self.started_at = 0.0
        """when the run would have begun, had it never been interrupted"""
        self.is_under_way = False
        """a run has begun that has not ended"""
        self.stop_requested: StopReason | None = None
        self.stop_reason: StopReason | None = None
        self.leaving: Leave | None = None
        """not None: the run is to be left at once, see `Interruption`"""
        self.error: BaseException | None = None
        """the last one that left one of our methods"""
        self.phase: Phase = NO_PHASE
        """the phase under way"""
        self.train_phase: Phase = NO_PHASE
        """that of the epoch's training, also between its loops"""
        self.train_source: Source | None = None
        self.row: dict[str, Any] = {}
        """of the epoch under way"""
        self.events = listeners(())
        self.save_is_due = False
        """something is to be done about checkpoints when the batch is over; a save in the background sets it when it ends"""
        self.save_is_agreed = False
        """several processes make a checkpoint at the next update, or where they meet next"""

        self.notices = Notices(self.files, self.world)
        self.position = Position()
        self.consensus = Consensus(self)
        self.phases = Phases(self)
        self.rows = Rows(self, counts_skips=self.precision.needs_scaler or on_nonfinite == "skip")
        self.saves = Saves(self)
        self.schedule_lengths = ScheduleLengths(self)
        self.interruption = Interruption(self, stop_after_s)
        self.going_on = GoingOn(self, resumption)
        self.nonfinite = make_answer(on_nonfinite, self)

    # -- for a checkpoint -------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers, as it was before the run began."""
        return settings_of(self, seed=self.seed, precision=self.precision.name)

    @property
    def order_seed(self) -> int | None:
        """The seed of the order of the training data."""
        return self.sources.order_seed

    @property
    def notes_random_states(self) -> bool:
        """Whether checkpoints may be written: by this process, or by another with this one's part in them."""
        return self.files.path is not None or not self.is_alone

    @property
    def data_facts(self) -> dict[str, Any]:
        """What must be the same about the training data when the run goes on."""
        return {} if self.train_source is None else self.train_source.describe_data()

    @property
    def part_sizes(self) -> dict[str, int]:
        """How many samples go through the model at once since memory ran out; changed by what loads a checkpoint."""
        return self.engine.part_sizes

    # -- run and epoch ----------------------------------------------------------------------------------------------

    def begin_run(self, budget: Budget) -> Budget:
        """Seed, open the records, and tell the callbacks; return the limits that are left to the loop."""
        return begin_run(self, budget)

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the run goes on in the middle of an epoch."""
        return self.going_on.is_inside_epoch

    def begin_epoch(self) -> None:
        """Start new sums, or go on with those of an epoch that was interrupted."""
        self.position.open_epoch()
        if self.going_on.is_inside_epoch:
            self.train_phase = self.phases.new("train", self.display)
            self.going_on.begin_epoch()
            # The rate is that of this process: samples of the one before took time that nobody measured.
            self.rows.begin_interval()
            return
        self.progress.steps_in_epoch = self.progress.samples_in_epoch = 0
        self.phases.forget_names()
        self.row = {"epoch": self.progress.epochs_done + 1}
        self.train_phase = self.phases.new("train", self.display)
        self.rows.begin_interval()
        self.tell("on_epoch_start")

    @billed("logging")
    def end_epoch(self) -> None:
        """Write the epoch's row, save, and tell the callbacks."""
        self.phases.finish_left()
        average_epoch(self)
        self.tick()
        epoch = self.row.pop("epoch")
        row = {**self.rows.coordinates("epoch", epoch), **self.row}
        self.files.write(row)
        self.files.record_bill(self.clock.bill, epoch=epoch)
        row.pop("kind")
        for updates in self.windows.by_name.values():
            updates.schedule.after_epoch(row)
        if self.precision.needs_scaler:
            self.notices.of_skipped(self.windows, self.progress, epoch)
        verdict = self.keeping.judge(row, self.progress.steps_done)
        self.notices.of_schedule_lengths(self.windows)
        marks_best = self.files.path is not None or self.keeping.has_own_monitor
        self.notices.of_epoch(verdict, row, monitor=self.keeping.monitor, marks_best=marks_best)
        self.position.end_epoch(row=row, verdict=asdict(verdict))
        self.saves.end()
        self.files.checkpoints.outdate()
        # The clocks differ, and with them what is monitored, perhaps: rank 0 decides.
        if self.world.gather(verdict.is_wanted or self.keeping.is_due_after_epoch(self.progress))[0]:
            self.saves.save(in_background=True)
        self.after_epoch(row, verdict)
        if not self.is_alone:
            self.consensus.agree({})  # what the callbacks want
            if self.save_is_agreed:
                self.saves.save()

    def after_epoch(self, row: dict[str, Any], verdict: Verdict) -> None:
        """Do what comes after the epoch's checkpoint; a run that goes on from it does it again."""
        if verdict.is_best and verdict.is_kept:
            self.files.checkpoints.mark_best(self.progress.steps_done, monitor=verdict.monitor, value=verdict.value)
        self.tell("on_epoch_end", row)
        self.position.close_epoch()

    def end_run(self, reason: StopReason) -> None:
        """Save the last weights and close the records; called once a run, also when an error passes through it."""
        try:
            end_run(self, reason)
        finally:
            self.interruption.end()
        if reason is not StopReason.LEFT:
            self.interruption.leave_late()

    def note(self, error: BaseException) -> None:
        """Remember an error that leaves one of our methods: if it ends the run, the records shall say so.

        The loop's iterator cannot tell an error from a `break`. An error that the user's own code raises, in a loop of their
        own, is therefore recorded as "left", like a `break`.
        """
        hint_at_device_assert(error)
        self.error = error
        self.world.note(error)

    def refuse(self, error: BaseException) -> None:
        """An error came before the first run began: nothing half-made stays behind."""
        if not self.is_under_way and not self.progress.steps_done and self.stop_reason is None:
            self.files.fail(StopReason.FAILED, error, self.progress)

    # -- data and phases --------------------------------------------------------------------------------------------

    def source(self, data: Any, *, role: str, batch_size: int | None = None, shuffle: bool = False) -> Source:
        """Return the source for what the user gave."""
        return self.sources.get(data, role=role, batch_size=batch_size, shuffle=shuffle)

    def placer(self, source: Source) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        place = self.engine_phases.watch(self.sources.placer(source), self._micro_batch_in_training)
        if self.is_alone:
            return place
        return lambda batch: (None, NO_BATCH) if batch is EMPTY else place(batch)

    def _micro_batch_in_training(self) -> int | None:
        """Return the number of the training micro-batch that comes; None in an evaluation."""
        return self.progress.micro_batches_done if self.phase.is_training else None

    def enter_data(self, source: Source, epoch: int) -> int | None:
        """Choose the order of the epoch and where in it to begin; None when this loop was over before the run was interrupted."""
        if not self.is_alone and self.train_source is None:  # the first of this process, and of every other
            self.consensus.check_data(source)
        self.train_source = source
        self.clock.origin = partial(self._describe_for_bill, source)
        self.schedule_lengths.begin(source)
        self.nonfinite.enter_loop()
        return self.going_on.enter_data(source, epoch)

    def _describe_for_bill(self, source: Source) -> tuple[str, dict[str, Any]]:
        """Return the class of the training data, and what advice on their speed, the optimizer's and that of saves depends on."""
        dataset, facts = source.origin()
        groups = [group for updates in self.windows.by_name.values() for group in updates.optimizer.param_groups]
        facts["cores"] = self._cores
        facts["fused_optimizer"] = all(group.get("fused") for group in groups)
        facts["processes"] = self.world.size
        facts["compiled"] = self.engine_phases.is_on
        facts["saves_in_background"] = self.keeping.policy.background
        return dataset, facts

    @cached_property
    def _cores(self) -> int:
        return usable_cores()

    def batches(self, source: Source) -> Iterator[Any]:
        """Return the iterator over the batches that are left."""
        return self.going_on.batches(source)

    def pass_over_data(self) -> None:
        """The batches that are left are not read: the run had all of its steps when it was interrupted."""
        self.going_on.pass_over_data()

    def watched(self, batches: Iterable[Any], place: Callable[[Any], tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
        """Return the batches as `place` makes them, with the time of some of them taken apart for the bill."""
        points: list[tuple[object, str, str]] = [(self, name, part) for name, part in _POINTS_OF_RUN.items()]
        for updates in self.windows.by_name.values():
            points += [(updates, name, part) for name, part in _POINTS_OF_UPDATES.items()]
        return self.watchers.watch(self.clock.batches(batches, place, points), self.clock.spending)

    def check_lengths(self, source: Any, budget: Budget) -> None:
        """Refuse schedules and averages that a run of this length would not fit, without running it."""
        self.budget = budget
        self.averaging.begin(epochs=budget.epochs, steps=budget.steps)
        self.schedule_lengths.begin(source)

    def training(self, source: Any) -> AbstractContextManager[Phase]:
        """Collect what is logged and measured inside as the training phase."""
        return self.phases.training(source)

    def claim_name(self, name: str, *, only_within: bool = False) -> bool:
        """Take a name for the values of an evaluation; return whether it is made within the training loop."""
        return self.phases.claim_name(name, only_within=only_within)

    def evaluation(self, name: str, source: Any) -> AbstractContextManager[Phase]:
        """Collect what is logged and measured inside under this name."""
        return self.phases.evaluation(name, source)

    def finish_left_phase(self) -> None:
        """Finish a phase whose loop was left by `break`; comes before anything that processes do together."""
        self.phases.finish_left()

    # -- steps ------------------------------------------------------------------------------------------------------

    def after_micro_batch(self, loss: Tensor, items: Tensor | float, updates: Updates) -> None:
        """Count a loss that was backpropagated."""
        self.progress.micro_batches_done += 1
        self.error = None  # whatever it was, the user's loop went on
        if self.precision.needs_scaler:
            # Overflow is part of fp16: its update is skipped and counted, and its loss is no number for a mean.
            items = torch.where(torch.isfinite(loss.detach()), items, 0.0)
        self.phase.count_loss(loss, items, prefix=updates.prefix)

    def after_update(self, updates: Updates) -> None:
        """Count an update; every so often write a row or save."""
        progress = self.progress
        progress.steps_done += 1
        progress.steps_in_epoch += 1
        if updates.norms:
            overflows_count = not self.precision.needs_scaler  # with fp16 they are skipped, and counted as that
            self.phase.count_norms(updates.norms, prefix=updates.prefix, all_count=overflows_count)
        for call in self.events["on_step_end"]:
            call(self.trainer)
        # The clock and the samples of one process are not those of another: these saves are agreed on at log points.
        is_due = (self.is_alone or self.keeping.counts_steps) and self.keeping.is_due_after_step(progress)
        if is_due or progress.steps_done % self.log_every == 0:
            self.rows.log_interval()  # before a save too: weights after a loss that is not finite are never saved
        if is_due or self.save_is_agreed:
            self.saves.plan()

    def skip_batch(self) -> None:
        """Other processes have a training batch where this one has none: take part in its update."""
        self.progress.micro_batches_done += 1
        updates = self.windows.skip()
        if updates is not None:
            self.update(updates)

    def update(self, updates: Updates) -> None:
        """Make the update of a window, as `Trainer.step` does."""
        try:
            self.windows.update(updates)
            self.after_update(updates)
        except NonFinite as found:
            self.nonfinite.answer(found, updates)

    def take_part(self) -> bool:
        """Make an update that belongs to other processes, if there is one; return whether there was."""
        updates = self.windows.turn_of_others()
        if updates is None:
            return False
        try:
            if not updates.take_part():
                return False
        except NonFinite as found:
            self.nonfinite.answer(found, updates)
            return True
        self.after_update(updates)
        return True

    def forget_casts(self) -> None:
        """The weights were changed, other than by an update."""
        self.precision.forget_casts()

    def measure(self, outcome: Any) -> None:
        """Feed the metrics of the phase; in an evaluation the loss too, which in training `after_micro_batch` counts."""
        if not self.phase.is_training:
            self.phase.count_loss(outcome.loss, outcome.items)
        self.phase.measure(outcome.output, outcome.target)

    def log(self, values: Mapping[str, Tensor | float]) -> None:
        """Average values over the phase."""
        self.phase.log(values)

    # -- what the loop and the trainer ask ------------------------------------------------------------------------------------

    def request_stop(self, reason: StopReason) -> None:
        """End the run after this step; where there are several processes, after the next log point, all at the same step."""
        if self.is_alone:
            self.stop_requested = reason
        else:
            self.consensus.wanted_stop = reason

    def save_if_due(self) -> None:
        """Write the checkpoint that waited for the end of the batch; learn what came of one that was written meanwhile."""
        self.phases.finish_left_within()
        self.saves.make_if_due()

    @property
    def wants_to_leave(self) -> Leave | None:
        """What this process was told by a signal or a deadline, which the others may not know yet."""
        return self.interruption.wanted

    def heed_time(self, now: float) -> None:
        """Look at the clock, for a deadline."""
        self.interruption.heed_time(now)

    def heed_others(self, wishes: list[Leave | None]) -> None:
        """Take what each process was told, by rank."""
        self.interruption.heed(wishes)

    def leave(self) -> StopReason:
        """Save where the run is, and raise what the process is expected to end with, or return the reason."""
        return self.interruption.leave()

    def explain(self) -> str:
        """Return the calls of a run in order, each with its owner."""
        return Explanation(self, listeners(self.callbacks)).text()

    def warn(self, line: str) -> None:
        """Show a line that must be seen, once a run; one that holds for this process and perhaps for no other."""
        self.notices.warn(line)

    def tick(self) -> None:
        """Bring the clock of the progress up to date."""
        self.progress.seconds = perf_counter() - self.started_at

    def tell(self, event: str, *details: Any) -> None:
        """Call the callbacks that listen to an event."""
        for call in self.events[event]:
            call(self.trainer, *details)
