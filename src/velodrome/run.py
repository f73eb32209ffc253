"""One run under way: phases, sums, rows and saves. The loop's host (`velodrome.loop.host.LoopHost`), owned by the trainer."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.callbacks.base import EVENTS, Callback
from velodrome.errors import ArgumentError, NumericsError
from velodrome.loop.progress import Budget, Progress, StopReason
from velodrome.phases import NO_PHASE, Phase
from velodrome.record.progress import NoProgress
from velodrome.seeding import seed_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.data.adopt import BatchIterable
    from velodrome.data.bound import BoundLoader
    from velodrome.loop.durations import Duration
    from velodrome.record.progress import ProgressView
    from velodrome.run_files import RunFiles
    from velodrome.sources import Sources
    from velodrome.step.first_batch import FirstBatch
    from velodrome.trainer import Trainer

__all__ = ["Run"]


class Run:
    """What happens around the steps. Everything here is called by the loop or by the trainer, in the order of the methods.

    Args:
        trainer: handed to the callbacks; its model and optimizer are the ones trained.
        metrics: by name, see `resolve_metrics`.
        callbacks: in the order in which they are told.
        files: what is written.
        sources: turns data into batches.
        first_batch: checks.
        policy: when to save, and which epoch is the best.
        log_every: a number of steps.
        save_every: or None for only at the end.
        seed: or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        metrics: Mapping[str, Any],
        callbacks: Sequence[Callback],
        files: RunFiles,
        display: ProgressView,
        sources: Sources,
        first_batch: FirstBatch,
        policy: Checkpointing,
        log_every: int,
        save_every: Duration | None,
        seed: int | None,
    ) -> None:
        self.trainer = trainer
        self.model = trainer.model
        self.optimizer = trainer.optimizer
        self.progress = Progress()
        self.stop_requested: StopReason | None = None
        self.stop_reason: StopReason | None = None
        self.best: dict[str, Any] | None = None
        self.phase = NO_PHASE
        self.files = files
        self.callbacks = list(callbacks)
        self.first_batch = first_batch
        self._sources = sources
        self._policy = policy
        self._log_every = log_every
        self._save_every = save_every
        self._seed = seed
        self._metrics = metrics
        self._display = display
        self._train_phase = NO_PHASE
        self._events = _listeners(())
        self._row: dict[str, Any] = {}
        self._epochs: int | None = None
        self._started_at = self._saved_at = 0.0
        self._interval = (0.0, 0)
        self._left_phase: Callable[[], None] | None = None
        self._is_under_way = False

    @property
    def is_under_way(self) -> bool:
        """Whether a run has begun that has not ended."""
        return self._is_under_way

    # -- run and epoch ----------------------------------------------------------------------------------------------

    def begin_run(self, budget: Budget) -> None:
        """Seed, open the records, and tell the callbacks."""
        if self._is_under_way:
            raise ArgumentError(
                "A run of this trainer is under way already. Finish its loop first, or make another Trainer."
            )
        if self.optimizer is None:
            raise ArgumentError(
                'This trainer has no optimizer: it only evaluates and predicts. Give optimizer="adam", say.'
            )
        self._is_under_way = True
        self.stop_requested = self.stop_reason = None
        self._epochs = budget.epochs
        self._events = _listeners(self.callbacks)
        if self._seed is not None and not self.progress.steps_done:
            seed_everything(self._seed)
        self.optimizer.zero_grad()  # what a computation before the run left there is not this run's gradient
        self._started_at = perf_counter() - self.progress.seconds
        self._saved_at = perf_counter()
        limits = {name: value for name, value in asdict(budget).items() if value is not None}
        self.files.start({"device": str(self.trainer.device), "seed": self._seed, "budget": limits})
        self._tell("on_fit_start")

    def begin_epoch(self) -> None:
        """Start new sums."""
        self.progress.steps_in_epoch = self.progress.samples_in_epoch = 0
        self._row = {"epoch": self.progress.epochs_done + 1}
        self._train_phase = self._new_phase("train", self._display)
        self._interval = (perf_counter(), self.progress.samples_done)
        self._tell("on_epoch_start")

    def end_epoch(self) -> None:
        """Write the epoch's row, save, and tell the callbacks."""
        self._finish_left_phase()
        self._tick()
        progress = self.progress
        row = {
            "kind": "epoch",
            "epoch": self._row.pop("epoch"),
            "step": progress.steps_done,
            "samples": progress.samples_done,
            "seconds": progress.seconds,
            "lr": _learning_rate(self.optimizer),
            **self._row,
        }
        self.files.write(row)
        row.pop("kind")
        self._keep(row)
        self._tell("on_epoch_end", row)

    def end_run(self, reason: StopReason) -> None:
        """Save the last weights and close the records; called once a run, also when an error passes through it."""
        self._tick()
        self._left_phase, self._is_under_way = None, False
        self.stop_reason = reason
        if reason is not StopReason.LEFT and self.progress.steps_done:
            self.save()
        self.files.finish(reason, self.progress, self.best)
        if reason is not StopReason.LEFT:
            self._tell("on_fit_end")

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run."""
        if self._is_under_way:  # a second run was refused inside of this one, which the error has not reached yet
            return
        self.phase = NO_PHASE
        self.stop_reason = StopReason.INTERRUPTED if isinstance(error, KeyboardInterrupt) else StopReason.FAILED
        try:
            self._tell("on_exception", error)
        finally:
            self.files.fail(self.stop_reason, error, self.progress)
            self._tell("on_fit_end")

    # -- phases -----------------------------------------------------------------------------------------------------

    def source(
        self, data: Any, *, role: str, batch_size: int | None = None, shuffle: bool = False
    ) -> BoundLoader | BatchIterable:
        """Return the source for what the user gave, and look at its first batch when it comes."""
        source = self._sources.get(data, role=role, batch_size=batch_size, shuffle=shuffle)
        self.first_batch.expect(source, getattr(source, "columns", None))
        return source

    def placer(self, source: Any) -> Callable[[Any], tuple[Any, int]]:
        """Return a function that puts a batch on the device and counts its samples."""
        return self._sources.placer(source)

    @contextmanager
    def training(self, total_batches: int | None) -> Iterator[Phase]:
        """Collect what is logged and measured inside as the training phase."""
        self._finish_left_phase()
        if self.phase is not NO_PHASE:
            raise ArgumentError(
                f"epoch.train() was started inside of the {self.phase.name!r} phase. Finish that loop first."
            )
        if "epoch" not in self._row:
            raise ArgumentError(
                "epoch.train() was called after its epoch was over. Call it inside of the loop over trainer.epochs(...)."
            )
        with self._inside(self._train_phase, total_batches, self._finish_training):
            yield self._train_phase

    @contextmanager
    def evaluation(self, name: str, total_batches: int | None) -> Iterator[Phase]:
        """Collect what is logged and measured inside under this name."""
        self._finish_left_phase()
        # Inside of another phase, from a callback say, the bar goes on showing that one.
        phase = self._new_phase(name, self._display if self.phase is NO_PHASE else NoProgress())
        with self._inside(phase, total_batches, partial(self._finish_evaluation, phase)):
            yield phase

    @contextmanager
    def _inside(self, phase: Phase, total_batches: int | None, finish: Callable[[], None]) -> Iterator[None]:
        """Make the phase the one under way; finish it when its loop has come to its end."""
        outer, self.phase = self.phase, phase
        phase.enter(self._row.get("epoch", 0), self._epochs, total_batches)
        try:
            yield
        except GeneratorExit:
            # Leaving a `for` loop looks the same to its iterator whether a `break` or an error did it. So a phase that was
            # left is finished when the run goes on, which after an error it does not.
            self._left_phase = finish
            raise
        finally:
            phase.leave()
            self.phase = outer
        finish()

    def _new_phase(self, name: str, display: ProgressView) -> Phase:
        return Phase(name, metrics=self._metrics, device=self.trainer.device, display=display)

    def _finish_training(self) -> None:
        """Put the means of the training phase into the epoch's row."""
        phase = self._train_phase
        phase.finish_blocking()
        self._check_finite_loss(phase.values)
        self._row.update({f"train/{name}": value for name, value in phase.values.items()})
        self._row["samples_per_s"] = self.progress.samples_in_epoch / max(1e-9, phase.seconds)

    def _finish_evaluation(self, phase: Phase) -> None:
        """Put the means of an evaluation into the epoch's row, and tell the callbacks."""
        phase.finish_blocking()
        named = {f"{phase.name}/{key}": value for key, value in phase.values.items()}
        self._row.update(named)
        if phase.name != "predict":
            self._tell("on_evaluate_end", named)

    def _finish_left_phase(self) -> None:
        """Finish a phase whose loop was left by `break`."""
        finish, self._left_phase = self._left_phase, None
        if finish is not None:
            finish()

    # -- steps ------------------------------------------------------------------------------------------------------

    def after_step(self, loss: Tensor, items: float | None) -> None:
        """Count an update; every so often write a row or save."""
        progress = self.progress
        progress.steps_done += 1
        progress.steps_in_epoch += 1
        self.phase.count_loss(loss, items)
        for call in self._events["on_step_end"]:
            call(self.trainer)
        every = self._save_every
        save_is_due = every is not None and every.unit != "epochs" and self._save_is_due(every)
        if save_is_due or progress.steps_done % self._log_every == 0:
            self._log_interval()  # before a save too: weights after a loss that is not finite are never saved
        if save_is_due:
            self.save()

    def measure(self, outcome: Any) -> None:
        """Feed the metrics of the phase; in an evaluation the loss too, which in training `after_step` counts."""
        if not self.phase.is_training:
            self.phase.count_loss(outcome.loss)
        self.phase.measure(outcome.output, outcome.target)

    def log(self, values: Mapping[str, Tensor | float]) -> None:
        """Average values over the phase."""
        self.phase.log(values)

    def save(self) -> Path | None:
        """Write a checkpoint now, unless this step has one or nothing is written at all."""
        path = self.files.save(self.model, self.progress)
        if path is not None:
            self._tell("on_checkpoint", path)
        return path

    # -- inner works ------------------------------------------------------------------------------------------------

    def _keep(self, row: dict[str, Any]) -> None:
        """Save when an epoch's save is due, and when the epoch is the best so far."""
        every = self._save_every
        if every is not None and every.unit == "epochs" and self.progress.epochs_done % int(every.amount) == 0:
            self.save()
        monitor = self._policy.monitor
        if monitor == "val/loss" and monitor not in row and monitor not in (self.best or ()):
            monitor = "train/loss"  # a run without validation has a best epoch too; no other metric has a stand-in
        monitored = row.get(monitor)
        if not isinstance(monitored, (int, float)):
            return
        best = None if self.best is None else self.best.get(monitor)
        if self._policy.is_better(float(monitored), best):
            self.best = row
            self.files.mark_best(self.model, self.progress, float(monitored))

    def _log_interval(self) -> None:
        """Write a row with the means since the last one."""
        self._tick()
        progress = self.progress
        means = self._train_phase.drain_blocking()  # SYNC: log point
        self._check_finite_loss(means)
        now, (then, samples_then) = perf_counter(), self._interval
        self._interval = (now, progress.samples_done)
        self.files.write(
            {
                "kind": "step",
                "epoch": self._row["epoch"],
                "step": progress.steps_done,
                "samples": progress.samples_done,
                "seconds": progress.seconds,
                "lr": _learning_rate(self.optimizer),
                **{f"train/{name}": value for name, value in means.items()},
                "samples_per_s": (progress.samples_done - samples_then) / max(1e-9, now - then),
            }
        )
        self._display.show(means)

    def _check_finite_loss(self, means: Mapping[str, float]) -> None:
        loss = means.get("loss", 0.0)
        if not math.isfinite(loss):
            step, lr = self.progress.steps_done, _learning_rate(self.optimizer)
            raise NumericsError(
                f"The training loss became {loss} within the last {self._log_every} steps before step {step} (epoch {self._row['epoch']}, lr {lr:g}). "
                f"A mean over finite losses is finite. Try a smaller lr, or look at the data and at log, sqrt and division in the model; "
                f"these weights were not saved.",
                step=step,
                lr=lr,
            )

    def _save_is_due(self, every: Duration) -> bool:
        """Return whether a save by steps, samples or seconds is due after this step."""
        amount, progress = every.amount, self.progress
        if every.unit == "steps":
            return progress.steps_done % int(amount) == 0
        if every.unit == "samples":
            return progress.samples_done // int(amount) > (progress.samples_done - self.phase.batch_samples) // int(
                amount
            )
        if perf_counter() - self._saved_at < amount:
            return False
        self._saved_at = perf_counter()
        return True

    def _tick(self) -> None:
        self.progress.seconds = perf_counter() - self._started_at

    def _tell(self, event: str, *details: Any) -> None:
        for call in self._events[event]:
            call(self.trainer, *details)


def _listeners(callbacks: Sequence[Callback]) -> dict[str, list[Callable[..., None]]]:
    """Return, by event, the methods that a callback overrides: an event that nobody listens to is an empty list."""
    return {
        event: [
            getattr(callback, event)
            for callback in callbacks
            if getattr(type(callback), event) is not getattr(Callback, event)
        ]
        for event in EVENTS
    }


def _learning_rate(optimizer: torch.optim.Optimizer | None) -> float:
    return math.nan if optimizer is None else float(optimizer.param_groups[0]["lr"])
