"""One run under way: phases, sums, rows and saves. The loop's host (`velodrome.loop.host.LoopHost`), owned by the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from velodrome.callbacks.base import Callback, listeners
from velodrome.data.origin import describe_origin
from velodrome.data.share import EMPTY
from velodrome.errors import ArgumentError, NumericsError
from velodrome.explain import Explanation
from velodrome.finite import check_finite_mean, check_finite_weights
from velodrome.going_on import GoingOn
from velodrome.interruption import Interruption
from velodrome.loop.host import NO_BATCH, LeftAtOnce, length_of
from velodrome.loop.modes import training_mode
from velodrome.loop.progress import Budget, Progress, StopReason
from velodrome.metrics.means import MAX_NAMES
from velodrome.metrics.merging import ALONE
from velodrome.nonfinite import make_answer
from velodrome.notices import Notices
from velodrome.phases import NO_PHASE, Phase
from velodrome.position import Position
from velodrome.record.clock import Clock, billed
from velodrome.record.marks import make_marks
from velodrome.record.progress import NoProgress
from velodrome.record.watch import NOBODY
from velodrome.report.findings import find
from velodrome.rescue import save_aside
from velodrome.resume import settings_of
from velodrome.room import estimate_room
from velodrome.run_state import callback_states
from velodrome.saving_together import SavingTogether
from velodrome.seeding import get_random_state, random_state_kept, seed_everything
from velodrome.step.batch_norm import recompute_statistics
from velodrome.step.checks import hint_at_device_assert
from velodrome.step.guard import NonFinite
from velodrome.together import Agreement, Together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from velodrome.data.adopt import BatchIterable
    from velodrome.data.bound import BoundLoader
    from velodrome.data_in_use import DataInUse
    from velodrome.distributed.world import World
    from velodrome.interruption import Leave
    from velodrome.keeping import Keeping, Verdict
    from velodrome.metrics.means import Merge
    from velodrome.record.progress import ProgressView
    from velodrome.resume import Resumption
    from velodrome.run_files import RunFiles
    from velodrome.step.averaging import NoAveraging
    from velodrome.step.compiled import NotCompiled
    from velodrome.step.determinism import Determinism
    from velodrome.step.eager import EagerEngine
    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.precision import Precision
    from velodrome.step.updates import Updates
    from velodrome.step.windows import Windows
    from velodrome.trainer import Trainer

__all__ = ["Run"]

# What is timed of a step, in the batches in which it is timed: methods, and the part of the bill that a call of each is.
_POINTS_OF_RUN = dict.fromkeys(("after_micro_batch", "after_update", "measure", "log"), "logging")
_POINTS_OF_UPDATES = {"backward": "backward", "update": "optimizer"}


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
        compilation: of the model, or none.
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

    def __init__(
        self,
        trainer: Trainer,
        *,
        metrics: Mapping[str, Any],
        callbacks: Sequence[Callback],
        files: RunFiles,
        display: ProgressView,
        sources: DataInUse,
        first_batch: FirstBatch,
        keeping: Keeping,
        windows: Windows,
        precision: Precision,
        compilation: NotCompiled,
        determinism: Determinism,
        averaging: NoAveraging,
        engine: EagerEngine,
        log_every: int,
        seed: int | None,
        world: World,
        resumption: Resumption,
        on_nonfinite: str = "stop",
        stop_after_s: float = math.inf,
    ) -> None:
        self.trainer = trainer
        self.world = world
        self.is_alone = world.size == 1
        """whether no other process trains together with this one"""
        self.model = trainer.model
        self.windows = windows
        self.progress = Progress()
        self.clock = Clock(make_marks(trainer.device))
        self.watchers = NOBODY
        self._together = Together(world, self.progress)
        self._stop_wanted: StopReason | None = None
        self._save_is_wanted = self._save_was_asked = False
        self.phase = NO_PHASE
        self.stop_requested: StopReason | None = None
        self.stop_reason: StopReason | None = None
        self.leaving: Leave | None = None
        """not None: the run is to be left at once, see `Interruption`"""
        self.interruption = Interruption(self, stop_after_s)
        self.files = files
        self.keeping = keeping
        self.first_batch = first_batch
        self.callbacks = list(callbacks)
        self._events = listeners(())
        self._display = display
        self._sources = sources
        self._metrics = metrics
        self._precision = precision
        self._compilation = compilation
        self._determinism = determinism
        self.averaging = averaging
        self._engine = engine
        self._train_source: Any = ()
        self._log_every = log_every
        self._seed = seed
        self.train_phase = NO_PHASE
        self._left_phase: Callable[[], None] | None = None
        self.row: dict[str, Any] = {}
        self._skips = precision.needs_scaler or on_nonfinite == "skip"
        self._budget = Budget()
        self._has_begun_schedules = False
        self._started_at = 0.0
        self._interval = (0.0, 0)
        self._is_under_way = False
        self._error: BaseException | None = None
        self.notices = Notices(files, world)
        self.position = Position()
        self.going_on = GoingOn(self, resumption)
        self.nonfinite = make_answer(on_nonfinite, self)
        self.save_is_due = False
        """something is to be done about checkpoints when the batch is over; a save in the background sets it when it ends"""
        self._in_loop = False
        self._saving = SavingTogether(self)
        self._saves_after_batch = False
        files.notify_of_save = self._hear_of_save

    # -- for a checkpoint -------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers, as it was before the run began."""
        return settings_of(self, seed=self._seed, precision=self._precision.name)

    @property
    def order_seed(self) -> int | None:
        """The seed of the order of the training data."""
        return self._sources.order_seed

    @property
    def notes_random_states(self) -> bool:
        """Whether checkpoints may be written: by this process, or by another with this one's part in them."""
        return self.files.path is not None or not self.is_alone

    @property
    def data_facts(self) -> dict[str, Any]:
        """What must be the same about the training data when the run goes on."""
        source = self._train_source
        return source.describe_data() if hasattr(source, "describe_data") else {}

    @property
    def saving(self) -> SavingTogether:
        """What several processes do for one checkpoint."""
        return self._saving

    def count_together_from_here(self) -> None:
        """All processes have the same counters now: a run goes on."""
        self._together.count_from_here()

    @property
    def part_sizes(self) -> dict[str, int]:
        """How many samples go through the model at once since memory ran out; changed by what loads a checkpoint."""
        return self._engine.part_sizes

    @property
    def is_under_way(self) -> bool:
        """Whether a run has begun that has not ended."""
        return self._is_under_way

    # -- run and epoch ----------------------------------------------------------------------------------------------

    def begin_run(self, budget: Budget) -> Budget:
        """Seed, open the records, and tell the callbacks; return the limits that are left to the loop."""
        if self._is_under_way:
            raise ArgumentError(
                "A run of this trainer is under way already. Finish its loop first, or make another Trainer."
            )
        if not self.windows:
            raise ArgumentError(
                'This trainer has no optimizer: it only evaluates and predicts. Give optimizer="adam", say.'
            )
        self._is_under_way = True
        was_stopped = self.stop_reason in (StopReason.INTERRUPTED, StopReason.TERMINATED, StopReason.DEADLINE)
        self.stop_requested = self.stop_reason = self._error = self._stop_wanted = self.leaving = None
        self._budget = budget
        self._has_begun_schedules = False
        self.clock.begin()
        self._events = self.clock.timed_listeners(listeners(self.callbacks))
        try:
            if not self.progress.steps_done:
                if self._seed is not None:
                    seed_everything(self._seed)
                self._join_others()
            self.windows.discard()  # what a computation before the run left there is not this run's gradient
            _ = self.settings
            self.going_on.load(budget)
            self._started_at = perf_counter() - self.progress.seconds
            self.keeping.count_from(self.progress)
            self.averaging.begin(epochs=budget.epochs, steps=budget.steps)
            self.files.check_model(self.model)
            self.notices.of_parameters(self.model, self.windows)
            self.notices.watch_gradients(self.model, self.windows)
            limits = {name: value for name, value in asdict(budget).items() if value is not None}
            if self.going_on.is_over:
                self.going_on.look_back()
                return budget
            if was_stopped and self.position.stage == "open":
                self.notices.warn_all(
                    f"Epoch {self.progress.epoch} was stopped in its middle, and this trainer begins it anew, on the weights as they are. To go on "
                    f'at the very next sample make a new Trainer with resume="auto" and the same run_dir.'
                )
            self.interruption.begin()
            self._events["on_step_end"] += self.interruption.listeners()
            self.files.start(
                {"device": str(self.trainer.device), "seed": self._seed, "processes": self.world.size, "budget": limits}
            )
            self.notices.of_room(estimate_room(self))
            self.going_on.start(self._sources)
            self.tell("on_fit_start")
            self.going_on.begin()
            if self.is_alone:
                return budget
            self._agree({})  # the clocks
            return replace(budget, seconds=None)  # time is agreed on at log points
        except BaseException as error:
            self.note(error)
            self.end_run(StopReason.LEFT)
            raise

    def _join_others(self) -> None:
        """See to it that all processes begin with the same weights and settings."""
        facts = {
            "seed": self._seed,
            "log_every": self._log_every,
            "budget": str(self._budget),
            "checkpoint": str(self.keeping.policy),
            "on_nonfinite": self.nonfinite.name,
            "optimizers": [
                f"{name}: {type(each.optimizer).__name__}, accumulate={each.accumulate}"
                for name, each in self.windows.by_name.items()
            ],
        }
        parameters = [parameter for updates in self.windows.by_name.values() for parameter in updates.parameters]
        self._together.begin(self.model, parameters, facts, self._seed)

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the run goes on in the middle of an epoch."""
        return self.going_on.is_inside_epoch

    def begin_epoch(self) -> None:
        """Start new sums, or go on with those of an epoch that was interrupted."""
        self.position.open_epoch()
        if self.going_on.is_inside_epoch:
            self.train_phase = self.new_phase("train", self._display)
            self.going_on.begin_epoch()
            # The rate is that of this process: samples of the one before took time that nobody measured.
            self._interval = (perf_counter(), self.progress.samples_done)
            return
        self.progress.steps_in_epoch = self.progress.samples_in_epoch = 0
        self.row = {"epoch": self.progress.epochs_done + 1}
        self.train_phase = self.new_phase("train", self._display)
        self._interval = (perf_counter(), self.progress.samples_done)
        self.tell("on_epoch_start")

    @billed("logging")
    def end_epoch(self) -> None:
        """Write the epoch's row, save, and tell the callbacks."""
        self.finish_left_phase()
        self._average_epoch()
        self.tick()
        epoch = self.row.pop("epoch")
        row = {**self._coordinates("epoch", epoch), **self.row}
        self.files.write(row)
        self.files.record_bill(self.clock.bill, epoch=epoch)
        row.pop("kind")
        for updates in self.windows.by_name.values():
            updates.schedule.after_epoch(row)
        if self._precision.needs_scaler:
            self.notices.of_skipped(self.windows, self.progress, epoch)
        verdict = self.keeping.judge(row, self.progress.steps_done)
        self.notices.of_schedule_lengths(self.windows)
        self.notices.of_epoch(verdict, row, monitor=self.keeping.monitor)
        self.position.end_epoch(row=row, verdict=asdict(verdict))
        self._end_saves()
        # The clocks differ, and with them what is monitored, perhaps: rank 0 decides.
        if self.world.gather(verdict.is_wanted or self.keeping.is_due_after_epoch(self.progress))[0]:
            self.save(in_background=True)
        self.after_epoch(row, verdict)
        if not self.is_alone:
            self._agree({})  # what the callbacks want
            if self._save_is_wanted:
                self.save()

    def after_epoch(self, row: dict[str, Any], verdict: Verdict) -> None:
        """Do what comes after the epoch's checkpoint; a run that goes on from it does it again."""
        if verdict.is_best and verdict.is_kept:
            self.files.mark_best(self.progress.steps_done, monitor=verdict.monitor, value=verdict.value)
        self.tell("on_epoch_end", row)
        self.position.close_epoch()

    def end_run(self, reason: StopReason) -> None:
        """Save the last weights and close the records; called once a run, also when an error passes through it."""
        try:
            self._end_run(reason)
        finally:
            self.interruption.end()
        if reason is not StopReason.LEFT:
            self.interruption.leave_late()

    def _end_run(self, reason: StopReason) -> None:
        if self.going_on.is_over:
            self.going_on.is_over, self._is_under_way, self.stop_reason = False, False, reason
            self.clock.end()
            self.files.leave()
            return
        self.tick()
        self._left_phase, self._is_under_way = None, False
        self.windows.discard()  # the window of a loop that was left together with the run
        error = noted = self._error if reason is StopReason.LEFT else None
        if self.leaving is not None and self.interruption.has_left:
            reason, error = self.leaving.reason, None
        elif error is None:
            try:
                self.files.wait_for_save()
                self._end_saves()
                if self.progress.steps_done and not self.files.can_save(self.progress):
                    check_finite_weights(self.model.named_parameters(), step=self.progress.steps_done)
                # A loop that was left, by `break` or by an error of the user's own, was perhaps left by this process only.
                self.save(together=reason is not StopReason.LEFT)
            except (
                BaseException
            ) as failure:  # of a callback that is told of the checkpoint, say: everything is closed all the same
                error = failure
        if error is None:
            self.stop_reason = reason
            if self.averaging.describe() and not self.averaging.num_averaged:
                self.notices.warn_all(
                    "The run ended before its weights were averaged once. Give a smaller start, or a longer run."
                )
            self.notices.of_whole_pace(self._together.pace)
            self.watchers.end()
            self.files.record_bill(self.clock.end(), findings=find(self.clock.bill), waits=self.watchers.sentences)
            self.files.finish(reason, self.progress, self.keeping.best)
            for failure in self._tell_each("on_fit_end"):
                raise failure
            return
        self.phase = NO_PHASE
        self.stop_reason = StopReason.INTERRUPTED if isinstance(error, KeyboardInterrupt) else StopReason.FAILED
        failures = self._tell_each("on_exception", error)
        save_aside(self, error)
        self.watchers.end()
        self.files.record_bill(self.clock.end())
        self.files.fail(self.stop_reason, error, self.progress)
        failures += self._tell_each("on_fit_end")
        for failure in failures:  # the first error is the one that matters
            error.add_note(f"Then a callback raised {type(failure).__name__}: {failure}")
        if reason is not StopReason.LEFT or (error is not noted and not isinstance(error, NumericsError)):
            raise error

    def note(self, error: BaseException) -> None:
        """Remember an error that leaves one of our methods: if it ends the run, the records shall say so.

        The loop's iterator cannot tell an error from a `break`. An error that the user's own code raises, in a loop of their
        own, is therefore recorded as "left", like a `break`.
        """
        hint_at_device_assert(error)
        self._error = error
        self.world.note(error)

    def refuse(self, error: BaseException) -> None:
        """An error came before the first run began: nothing half-made stays behind."""
        if not self._is_under_way and not self.progress.steps_done and self.stop_reason is None:
            self.files.fail(StopReason.FAILED, error, self.progress)

    # -- phases -----------------------------------------------------------------------------------------------------

    def source(
        self, data: Any, *, role: str, batch_size: int | None = None, shuffle: bool = False
    ) -> BoundLoader | BatchIterable:
        """Return the source for what the user gave."""
        return self._sources.get(data, role=role, batch_size=batch_size, shuffle=shuffle)

    def placer(self, source: Any) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        place = self._compilation.watch(self._sources.placer(source), self._micro_batch_in_training)
        if self.is_alone:
            return place
        return lambda batch: (None, NO_BATCH) if batch is EMPTY else place(batch)

    def _micro_batch_in_training(self) -> int | None:
        """Return the number of the training micro-batch that comes; None in an evaluation."""
        return self.progress.micro_batches_done if self.phase.is_training else None

    @contextmanager
    def training(self, source: Any) -> Iterator[Phase]:
        """Collect what is logged and measured inside as the training phase."""
        self.finish_left_phase()
        if self.phase is not NO_PHASE:
            raise ArgumentError(
                f"epoch.train() was started inside of the {self.phase.name!r} phase. Finish that loop first."
            )
        if "epoch" not in self.row:
            raise ArgumentError(
                "epoch.train() was called after its epoch was over. Call it inside of the loop over trainer.epochs(...)."
            )
        self.position.enter_loop(source)
        self._in_loop = True
        with (
            self.clock.looping(),
            self._inside(self.train_phase, source, self._finish_training),
            self.windows.training(),
        ):
            yield self.train_phase
            self._close_windows()
            self._follow_others()
            if (
                self.leaving is not None and not self.is_alone
            ):  # the others are in the middle of their data, and leave there
                self.leave()
                raise LeftAtOnce

    def enter_data(self, source: Any, epoch: int) -> int | None:
        """Choose the order of the epoch and where in it to begin; None when this loop was over before the run was interrupted."""
        if not self.is_alone and self._train_source == ():  # the first of this process, and of every other
            self._together.check_data(getattr(source, "shared_facts", None))
        self._train_source = source
        self.clock.dataset, self.clock.facts = describe_origin(source)
        self._begin_schedules(source)
        self.nonfinite.enter_loop()
        return self.going_on.enter_data(source, epoch)

    def batches(self, source: Any) -> Iterator[Any]:
        """Return the iterator over the batches that are left."""
        return self.going_on.batches(source)

    def watched(self, batches: Iterable[Any], place: Callable[[Any], tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
        """Return the batches as `place` makes them, with the time of some of them taken apart for the bill."""
        points: list[tuple[object, str, str]] = [(self, name, part) for name, part in _POINTS_OF_RUN.items()]
        for updates in self.windows.by_name.values():
            points += [(updates, name, part) for name, part in _POINTS_OF_UPDATES.items()]
        return self.watchers.watch(self.clock.batches(batches, place, points), self.clock.spending)

    def check_lengths(self, source: Any, budget: Budget) -> None:
        """Refuse schedules and averages that a run of this length would not fit, without running it."""
        self._budget = budget
        self.averaging.begin(epochs=budget.epochs, steps=budget.steps)
        self._begin_schedules(source)

    def _begin_schedules(self, source: Any) -> None:
        """Tell the learning-rate schedules how long the run is, once its data are known."""
        if self._has_begun_schedules:
            return
        self._has_begun_schedules = True
        batches, several = length_of(source), len(self.windows)
        try:
            for updates in self.windows.by_name.values():
                per_epoch = None if batches is None else -(-batches // updates.accumulate)
                # The budget counts the updates of all optimizers, which take turns.
                steps = None if self._budget.steps is None else -(-self._budget.steps // several)
                updates.schedule.start(steps_per_epoch=per_epoch, epochs=self._budget.epochs, steps=steps)
            self.notices.of_schedules(self.windows)
        except BaseException as error:
            self.note(error)
            raise

    @contextmanager
    def evaluation(self, name: str, source: Any) -> Iterator[Phase]:
        """Collect what is logged and measured inside under this name."""
        self.finish_left_phase()
        if self.phase is not NO_PHASE and not self.phase.is_training:
            raise ArgumentError(
                f"The evaluation {name!r} was started inside of the evaluation {self.phase.name!r}. Finish that loop first."
            )
        if self.phase is NO_PHASE:
            self._average_epoch()
            if name == "eval" and not self._is_under_way:
                self.world.broadcast_from_main(self.model)  # in a run all have the same weights; before it, who knows
        # Inside of the training phase, from a callback say, the bar goes on showing that one.
        phase = self.new_phase(name, self._display if self.phase is NO_PHASE else NoProgress())
        inside = self._inside(phase, source, partial(self._finish_evaluation, phase))
        with self.clock.spending("evaluation"), inside, self.windows.evaluating(), self.averaging.evaluating():
            yield phase

    @contextmanager
    def _inside(self, phase: Phase, source: Any, finish: Callable[[], None]) -> Iterator[None]:
        """Make the phase the one under way; finish it when its loop has come to its end."""
        outer, self.phase = self.phase, phase
        columns = getattr(source, "columns", None)
        phase.enter(
            self.row.get("epoch", 0), self._budget.epochs, length_of(source), batches_are_new=columns is not None
        )
        try:
            with self.first_batch.of(source, columns), self._determinism.around(), self._precision.around(self.model):
                yield
        except GeneratorExit:
            # Leaving a `for` loop looks the same to its iterator whether a `break` or an error did it. So a phase that was
            # left is finished when the run goes on, which after an error it does not.
            self._left_phase = finish
            raise
        except LeftAtOnce:
            raise
        except BaseException as error:
            if self.interruption.has_ended_workers(error):
                self.leave()
                raise LeftAtOnce from None
            self.note(error)
            raise
        finally:
            phase.leave()
            self.phase = outer
            self._compilation.leave_phase()
        try:
            finish()
        except BaseException as error:
            self.note(error)
            raise

    def new_phase(self, name: str, display: ProgressView) -> Phase:
        """Return a phase with sums of its own."""
        # Every process predicts everything, and may do so alone.
        others = ALONE if name == "predict" else self.world
        return Phase(
            name,
            metrics=self._metrics,
            device=self.trainer.device,
            display=display,
            others=others,
            outputs_are_reused=self._compilation.reuses_memory,
        )

    def _read_blocking(self, phase: Phase, merge: Merge) -> None:
        """Set the phase's values, and say what is missing there."""
        phase.finish_blocking(merge)
        if phase.num_dropped:
            self.notices.warn_all(
                f"More than {MAX_NAMES} different names were logged while {phase.name!r} went on; the others were dropped. "
                f"Put the changing part into the value, not into the name."
            )

    @billed("logging")
    def _finish_training(self) -> None:
        """Put the means of the training phase into the epoch's row."""
        phase = self.train_phase
        self.windows.settle_blocking()
        self.nonfinite.read_flags()
        self.tick()
        self._read_blocking(phase, self._agree)
        phase.told = self.world.gather((phase.batches_done, phase.is_whole))
        self.position.is_whole &= all(is_whole for _, is_whole in phase.told)
        self.world.broadcast_buffers(self.model)  # statistics of BatchNorm are those of each process's own batches
        if self.averaging.num_averaged and not self.is_alone:
            with self.averaging.applied():
                self.world.broadcast_buffers(self.model)
        self._check_finite_loss(phase.values)
        self.row.update({f"train/{name}": value for name, value in phase.values.items()})
        self.row["samples_per_s"] = self.progress.samples_in_epoch / max(1e-9, phase.seconds)
        self.position.leave_loop(get_random_state(self.trainer.device) if self.notes_random_states else None)
        self._end_saves()
        if self._saves_after_batch or self._saving.waits or self._save_is_wanted:
            self.save(in_background=True)

    def _finish_evaluation(self, phase: Phase) -> None:
        """Put the means of an evaluation into the epoch's row, and tell the callbacks."""
        self._read_blocking(phase, phase.others.merge_sums)
        named = {f"{phase.name}/{key}": value for key, value in phase.values.items()}
        if "epoch" in self.row and phase.name not in ("eval", "predict"):
            self.row.update(named)
            if self._events["on_evaluate_end"] and self.position.callbacks is None and self.notes_random_states:
                self.position.callbacks = deepcopy(
                    callback_states(self)
                )  # it is told again when the run goes on from here
            self.tell("on_evaluate_end", named)

    def finish_left_phase(self) -> None:
        """Finish a phase whose loop was left by `break`; comes before anything that processes do together."""
        finish, self._left_phase = self._left_phase, None
        if finish is not None:
            if self._saves_after_batch and not self.is_alone:
                self.save()  # others wait for this process; they are told that it is not where they are
            if finish == self._finish_training and (self.windows.open_ones or not self.is_alone):
                with self.windows.training():
                    self._close_windows()
                    self._follow_others()
            finish()

    def settle_left_phase(self) -> None:
        """Before the run is left: a training loop that the user left is finished as it would have been; an evaluation is run again later."""
        if self._left_phase != self._finish_training:
            self._left_phase = None
        self.finish_left_phase()

    def _close_windows(self) -> None:
        """Make the update of a window that the data ended in: a short one is divided by what it has."""
        outer, self.phase = self.phase, self.train_phase
        self._in_loop = False
        try:
            for updates in self.windows.open_ones:
                self.update(updates)
        finally:
            self.phase = outer

    def _follow_others(self) -> None:
        """Take part in the updates of processes whose data last longer, until nobody has any: weights stay the same everywhere."""
        if self.is_alone:
            return
        outer, self.phase = self.phase, self.train_phase
        try:
            while self.leaving is None and self._take_part():
                pass
        finally:
            self.phase = outer

    def _average_epoch(self) -> None:
        """Average the weights at the end of an epoch's training, if it is time: before they are evaluated and saved."""
        if "epoch" in self.row and self.progress.steps_in_epoch and self.averaging.after_epoch(self.row["epoch"]):
            self._recompute_statistics()

    def _recompute_statistics(self) -> None:
        """Pass the training data through the averaged model; the run goes on as if that had not been."""
        source, engine = self._train_source, self._engine
        if isinstance(getattr(source, "data", None), Iterator):
            self.notices.warn_all(
                "The training data can be read only once, so the BatchNorm statistics of the averaged weights are those of the "
                "weights before averaging. Give data that can be read again, such as a DataLoader."
            )
            return
        # In the order of this epoch, whether its loop was run here or before the run was interrupted, to its end or not.
        source.set_epoch(self.row["epoch"] - 1)
        source = source.whole()  # every process reads all of it: the same statistics everywhere, those of one process
        place = self.placer(source)
        # A loop of one's own may compute its loss outside: then the batch goes through the model without its target.
        forward = engine.forward if self.first_batch.has_seen(source) else engine.predict
        as_in_training = training_mode(self.model), self._precision.around(self.model)
        with self.averaging.applied(), random_state_kept(self.trainer.device), as_in_training[0], as_in_training[1]:
            batches = (place(batch)[0] for batch in source)
            recompute_statistics(self.model, batches, forward)

    # -- steps ------------------------------------------------------------------------------------------------------

    def after_micro_batch(self, loss: Tensor, items: Tensor | float, updates: Updates) -> None:
        """Count a loss that was backpropagated."""
        self.progress.micro_batches_done += 1
        self._error = None  # whatever it was, the user's loop went on
        if self._precision.needs_scaler:
            # Overflow is part of fp16: its update is skipped and counted, and its loss is no number for a mean.
            items = torch.where(torch.isfinite(loss.detach()), items, 0.0)
        self.phase.count_loss(loss, items, prefix=updates.prefix)

    def after_update(self, updates: Updates) -> None:
        """Count an update; every so often write a row or save."""
        progress = self.progress
        progress.steps_done += 1
        progress.steps_in_epoch += 1
        if updates.norms:
            overflows_count = not self._precision.needs_scaler  # with fp16 they are skipped, and counted as that
            self.phase.count_norms(updates.norms, prefix=updates.prefix, all_count=overflows_count)
        for call in self._events["on_step_end"]:
            call(self.trainer)
        # The clock and the samples of one process are not those of another: these saves are agreed on at log points.
        save_is_due = (self.is_alone or self.keeping.counts_steps) and self.keeping.is_due_after_step(progress)
        if save_is_due or progress.steps_done % self._log_every == 0:
            self._log_interval()  # before a save too: weights after a loss that is not finite are never saved
        if save_is_due or self._save_is_wanted:
            # Written when the batch is over: what the loop still does with it belongs to the checkpoint.
            if self.is_alone or self._saving.due():
                self._saves_after_batch = self.save_is_due = True
            self._save_is_wanted = False

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

    def _take_part(self) -> bool:
        """Make an update that belongs to other processes, if there is one; return whether there was."""
        try:
            updates = self.windows.take_part()
        except NonFinite as found:
            self.nonfinite.answer(found, next(iter(self.windows.by_name.values())))
            return True
        if updates is not None:
            self.after_update(updates)
        return updates is not None

    def forget_casts(self) -> None:
        """The weights were changed, other than by an update."""
        self._precision.forget_casts()

    def request_stop(self, reason: StopReason) -> None:
        """End the run after this step; where there are several processes, after the next log point, all at the same step."""
        if self.is_alone:
            self.stop_requested = reason
        else:
            self._stop_wanted = reason

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

    def measure(self, outcome: Any) -> None:
        """Feed the metrics of the phase; in an evaluation the loss too, which in training `after_micro_batch` counts."""
        if not self.phase.is_training:
            self.phase.count_loss(outcome.loss, outcome.items)
        self.phase.measure(outcome.output, outcome.target)

    def log(self, values: Mapping[str, Tensor | float]) -> None:
        """Average values over the phase."""
        self.phase.log(values)

    def ask_to_save(self) -> Path | None:
        """Write a checkpoint now; several processes, of which perhaps only this one asks, write it when they next agree on anything."""
        if self.is_alone or not self._is_under_way:
            return self.save(together=False)
        self._save_was_asked = True
        return None

    @billed("saving")
    def save(self, *, together: bool = True, in_background: bool = False) -> Path | None:
        """Write a checkpoint now; None when this step has one, when nothing is written at all, or when the disk failed.

        Args:
            together: every process of several is here; else the one that writes saves the weights alone.
            in_background: where the policy says so, write it while training goes on; None then.
        Raises:
            NumericsError: a weight is not finite; such weights are never saved.
        """
        is_resumable = not self.position.is_in_batch
        in_background = in_background and self.keeping.policy.background
        if is_resumable or not self.is_alone:
            self.save_is_due = self._saves_after_batch = False
        if not in_background or self.files.can_save(self.progress, is_resumable=is_resumable):
            self.files.wait_for_save(is_a_stall=in_background)
            self._end_saves()
        if not self.is_alone or self.files.can_save(self.progress, is_resumable=is_resumable):
            self.nonfinite.read_flags()
        if together and not self.is_alone:
            writes = self._saving.meet()
            self._save_is_wanted = False  # what was wanted is made here, or waits
            if not writes:
                if self._saving.is_made:
                    self.nonfinite.after_save()
                return None
        if not self.files.can_save(self.progress, is_resumable=is_resumable):
            return None
        if self.is_alone and not is_resumable:
            self.save_is_due = self._saves_after_batch = True
        step, averaging = self.progress.steps_done, self.averaging
        self.keeping.begin_save(self.progress)
        with averaging.raw(), self.windows.evaluating():
            check_finite_weights(self.model.named_parameters(), step=step)
            check_finite_weights(averaging.named_parameters(), step=step, what="averaged weight")
            self.files.save(
                self.model,
                self.progress,
                keep=self.keeping.kept_steps,
                averaging=averaging,
                more=self.going_on.collect,
                in_background=in_background,
            )
        if is_resumable:
            self.nonfinite.after_save()
        self.keeping.count_from(self.progress)
        return None if in_background else self._end_saves()

    def save_if_due(self) -> None:
        """Write the checkpoint that waited for the end of the batch; learn what came of one that was written meanwhile."""
        self.save_is_due = False
        self._end_saves()
        if self._saves_after_batch:
            self.save(in_background=True)

    def _hear_of_save(self) -> None:
        self.save_is_due = True  # from another thread: nothing but this, which the loop looks at after every batch

    def _end_saves(self) -> Path | None:
        """Tell of the saves that ended, and return where the last of them is; stop the run when too many failed."""
        path = None
        for outcome in self.files.end_saves():
            path = outcome.path
            if path is None:
                self.keeping.forget(outcome.step)
            else:
                self.interruption.count_save(outcome.seconds)
                self.tell("on_checkpoint", path)
        if self.files.has_given_up and self.stop_requested is None:
            self.request_stop(StopReason.NOT_SAVED)
        return path

    # -- inner works ------------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """Return the calls of a run in order, each with its owner."""
        return Explanation(
            run=self,
            events=listeners(self.callbacks),
            metrics=self._metrics,
            engine=self._engine,
            first_batch=self.first_batch,
            sources=self._sources,
            precision=self._precision,
            compilation=self._compilation,
            log_every=self._log_every,
            seed=self._seed,
        ).text()

    @billed("logging")
    def _log_interval(self) -> None:
        """Write a row with the means since the last one."""
        self.tick()
        self.windows.settle_blocking()
        self.nonfinite.read_flags()
        means = self.train_phase.drain_blocking(self._agree)  # SYNC: log point
        self._check_finite_loss(means)
        self.nonfinite.at_log_point()
        now, (then, samples_then) = perf_counter(), self._interval
        self._interval = (now, self.progress.samples_done)
        row = self._coordinates("step", self.row["epoch"])
        row.update({f"train/{name}": value for name, value in means.items()})
        row["samples_per_s"] = (self.progress.samples_done - samples_then) / max(1e-9, now - then)
        self.files.write(row)
        self._display.show(means)

    def _agree(self, sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        """Return the sums over all processes; agree on the way how far the run is, and whether to stop or to save."""
        if self.is_alone:
            return sums
        return self.agree(sums).sums

    def agree(self, sums: Mapping[str, list[float]], **more: Any) -> Agreement:
        """Agree with the other processes how far the run is, and whether to stop or to save; and tell them more."""
        agreement = self._together.agree(
            sums,
            stop=self._stop_wanted,
            save_is_due=self.keeping.is_due_after_step(self.progress),
            save_was_asked=self._save_was_asked,
            is_inside=self._in_loop,
            leave=self.wants_to_leave,
            **more,
        )
        self._save_was_asked = False
        self.notices.of_pace(self._together.pace)
        self.heed_others([wish["leave"] for wish in agreement.wishes])
        stops = [wish["stop"] for wish in agreement.wishes if wish["stop"] is not None]
        seconds = self._budget.seconds
        if self.stop_requested is None:
            if stops:
                self.stop_requested = stops[0]
            elif seconds is not None and self.progress.seconds >= seconds:
                self.stop_requested = StopReason.SECONDS
        # Of saves by time or samples rank 0 has the clock; one that somebody asked for is made for all.
        is_due = not self.keeping.counts_steps and agreement.wishes[0]["save_is_due"]
        self._save_is_wanted = is_due or any(wish["save_was_asked"] for wish in agreement.wishes)
        self._saving.inside = [wish["is_inside"] for wish in agreement.wishes]
        return agreement

    def _coordinates(self, kind: str, epoch: int) -> dict[str, Any]:
        """Return what every row begins with: where in the run it was written."""
        progress = self.progress
        return {
            "kind": kind,
            "epoch": epoch,
            "step": progress.steps_done,
            "samples": progress.samples_done,
            "seconds": progress.seconds,
            **self.windows.learning_rates,
            **({"skipped_steps": self.windows.skipped} if self._skips else {}),
        }

    def warn(self, line: str) -> None:
        """Show a line that must be seen, once a run; one that holds for this process and perhaps for no other."""
        self.notices.warn(line)

    def _check_finite_loss(self, means: Mapping[str, float]) -> None:
        for name, mean in means.items():
            what = {"loss": "loss", "grad_norm": "gradient norm"}.get(name.rpartition("/")[2])
            if what is not None and not math.isfinite(mean):
                lr = self.windows.learning_rates["lr"]
                check_finite_mean(mean, what=what, step=self.progress.steps_done, epoch=self.row["epoch"], lr=lr)

    def tick(self) -> None:
        """Bring the clock of the progress up to date."""
        self.progress.seconds = perf_counter() - self._started_at

    def tell(self, event: str, *details: Any) -> None:
        """Call the callbacks that listen to an event."""
        for call in self._events[event]:
            call(self.trainer, *details)

    def _tell_each(self, event: str, *details: Any) -> list[Exception]:
        """Call every callback at the end of a run, whatever those before it do: each closes what it opened. Return their errors."""
        failures: list[Exception] = []
        for call in self._events[event]:
            try:
                call(self.trainer, *details)
            except Exception as failure:
                failures.append(failure)
        return failures
