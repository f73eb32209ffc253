"""The front door: `Trainer` holds the parts and offers two ways to drive them, your own loop and `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.averages import EMA, SWA, find_average
from velodrome.callbacks.base import Callback, check_callbacks
from velodrome.callbacks.best_checkpoint import BestCheckpoint
from velodrome.checkpoint.policy import Checkpointing
from velodrome.data.batches import map_tensors
from velodrome.data_in_use import DataInUse
from velodrome.devices import resolve_device
from velodrome.distributed.world import SINGLE, World, join_world, local_device
from velodrome.engines import CaptureContext, choose_engine, held_results
from velodrome.errors import ArgumentError, nearest
from velodrome.loop.durations import Duration, parse_duration
from velodrome.loop.epochs import Epoch, run_epochs
from velodrome.loop.evaluate import run_evaluation, run_prediction
from velodrome.loop.fit import fit
from velodrome.loop.progress import Budget, Progress, StopReason
from velodrome.loop.result import FitResult
from velodrome.metrics.metric_set import check_metrics_mergeable, resolve_metrics
from velodrome.metrics.named import Labels
from velodrome.nonfinite.answers import check_policy
from velodrome.optimization import Optimization
from velodrome.out_of_memory import OnOutOfMemory
from velodrome.record.progress import make_progress
from velodrome.record.watch import make_watchers, parse_batches
from velodrome.resume.finding import find_together
from velodrome.run.files import RunFiles
from velodrome.run.keeping import Keeping
from velodrome.run.run import Run
from velodrome.seeding import check_seed
from velodrome.step.arguments import check_items, num_micro_batches
from velodrome.step.averaging import NO_AVERAGING, Averaging, NoAveraging
from velodrome.step.checks import explain_late_failure
from velodrome.step.determinism import resolve_determinism
from velodrome.step.eager import EagerEngine, Outcome
from velodrome.step.first_batch import FirstBatch
from velodrome.step.guard import NonFinite
from velodrome.step.layout import use_channels_last
from velodrome.step.losses import Loss, resolve_loss
from velodrome.step.memory import is_out_of_memory
from velodrome.step.parameters import freeze as freeze_parameters
from velodrome.step.precision import resolve_precision
from velodrome.step.recompute import recompute_activations
from velodrome.stopping.deadline import parse_stop_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

__all__ = ["Trainer"]


_STRATEGIES = ("auto", "ddp", "single")


class Trainer:
    """Trains a model, by `fit` or by a loop of your own.

    ```python
    for epoch in trainer.epochs(5):
        for x, y in epoch.train(train):
            trainer.step(F.cross_entropy(trainer.model(x), y))
        for x, y in epoch.evaluate(val):
            trainer.log(accuracy=(trainer.model(x).argmax(1) == y).float())
    ```

    Args:
        model: moved to the device in place.
        optimizer: an instance, a factory `parameters -> Optimizer`, or a name: any `torch.optim` class in lower case; a dict of
            them for a model with several, a GAN say (a factory or name gets the submodule of the dict's key); None for a trainer
            that only evaluates and predicts.
        lr: learning rate, for an optimizer given by name or factory.
        optimizer_args: further arguments for an optimizer given by name, such as `{"momentum": 0.9}`.
        loss: `(output, target) -> scalar`, a name such as "cross_entropy", or None for a model that returns its loss.
        loss_args: arguments for a loss given by name, such as `{"label_smoothing": 0.1}`. Write `ignore_index` out, even -100, when
            batches of one label a sample, not in memory, may hold it: else it is looked for in the first batch only.
        step_fn: `(model, batch) -> loss or {"loss": ..., "output": ..., "target": ..., "items": ...}` in place of forward and loss.
        metrics: names ("accuracy", "top5"), torchmetrics objects, functions `(output, target) -> value(s)`; a list or a dict.
        parameter_groups: options of an optimizer given by name or factory, by patterns of parameter or module names:
            `{"head": {"lr": 1e-3}, "*.bias": {"weight_decay": 0.0}}`.
        freeze: patterns of parameter or module names that are not trained.
        gradient_checkpointing: patterns of module names whose activations are computed again in the backward pass instead of kept.
        scheduler: of the learning rate: any of `torch.optim.lr_scheduler`, built on the optimizer; a factory `optimizer -> scheduler`;
            or a name with a warm-up in `scheduler_args`: "cosine", "linear", "one_cycle", "wsd", "plateau", ... Lengths are the
            run's where they are not given. With several optimizers a dict, or one name or factory for all.
        scheduler_every: "step" or "epoch": how often it moves on. Names, OneCycleLR and CyclicLR move per update, others per epoch.
        scheduler_monitor: the value of an epoch that "plateau" and ReduceLROnPlateau follow; "val/loss" when left out.
        precision: "fp32"; "tf32"; "bf16" or "fp16" by autocast, fp16 with a scaled loss. Losses, sums and updates are fp32 always.
        scaler_args: arguments of `torch.amp.GradScaler`, for "fp16".
        accumulate: micro-batches an update. Their gradients are summed and divided once by the items of all of them.
        clip_norm: largest norm of the gradients of an update; clip_value: largest absolute value of one of them.
        compile: True, "default", "reduce-overhead", ... or a dict of arguments: `torch.compile` for the model, in place. The odd last
            batch is run without; cost and break-even are said after the first few steps.
        engine: what runs the steps: "eager"; "compiled", which is compile=True; "captured", CUDA graphs of whole steps in `fit`, checked against
            eager before they are trusted; "auto" chooses, and `explain` says why.
        channels_last: store the weights of convolutions in the order that most devices are fastest with; "auto" where that pays.
        ema: an average of the weights to keep, evaluate and save beside them: a decay such as 0.999, an `EMA` or an `SWA`. With
            several optimizers the updates of the first one count.
        grad_norms: record the norm of the gradients layer by layer too; in total they are recorded wherever they are clipped.
        device: "auto" is CUDA, then MPS, then the CPU; or any torch device.
        strategy: "auto" trains together with the other processes that `torchrun` or `velodrome train --processes` started, if any;
            "ddp" demands that there are such; "single" trains alone all the same.
        seed: of everything random from the start of the run on, and of the data order; None leaves the generators as they are.
        deterministic: only algorithms that give the same bits in every run; operations without one raise.
        run_dir: a new folder for everything that the run writes; None writes nothing.
        resume: "auto" goes on with the run in `run_dir`, if there is one, exactly where its newest checkpoint was made; so does the
            path of a run directory; "never" refuses a `run_dir` that holds a run.
        accept_changes: go on although settings are not those of the run: a learning rate, a seed, a batch size.
        checkpoint: when to save into `run_dir`: "every epoch", "every 500 steps", a `Checkpointing`, or None for the end only.
        on_nonfinite: what happens when a loss or a gradient is NaN or infinite, before it reaches the weights: "stop" with what is
            known of it; "skip" the batch; "rollback" to the last log point and go on with the next batch.
        callbacks: told of events in the order given.
        loggers: what to write besides `metrics.jsonl`: "csv", "tensorboard", "curves", "report", or sinks of your own; None is all four.
        progress: show a bar, or lines where there is no terminal.
        on_oom: what to do when a batch does not fit into memory: "stop" with an error that says what to change, or "split": run it in halves,
            quarters, ... with unchanged gradients, and remember the size.
        log_every: how often the training loss is read and recorded; nothing else waits for the device within an epoch.
        profile: True, a number of training batches or "FIRST:LAST": a trace of these by torch's profiler, in `run_dir`/profile.
        find_syncs: the same: in these batches look which lines make the loop wait for the device, and say so.
        stop_after: a time, such as "50 minutes", after which `fit` has saved and ended, wherever it is; `resume` goes on from there.
    Raises:
        ArgumentError: an argument is wrong or unknown; nothing was written.
        RefusedError: `run_dir` holds a run already, or one that is not this one is to be gone on with.
        CheckpointError: a run is to be gone on with, and no checkpoint of it can be.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | str | Mapping[str, Any] | None = "adam",
        *,
        lr: float | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        loss: Callable[[Any, Any], Any] | str | None = None,
        loss_args: Mapping[str, Any] | None = None,
        step_fn: Callable[[nn.Module, Any], Any] | None = None,
        metrics: Sequence[Any] | Mapping[str, Any] = (),
        parameter_groups: Mapping[str, Mapping[str, Any]] | None = None,
        freeze: Sequence[str] = (),
        gradient_checkpointing: Sequence[str] = (),
        scheduler: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler_every: str | None = None,
        scheduler_monitor: str | None = None,
        precision: str = "fp32",
        scaler_args: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        compile: bool | str | Mapping[str, Any] = False,
        engine: str = "auto",
        channels_last: bool | str = False,
        grad_norms: bool = False,
        ema: EMA | SWA | float | None = None,
        device: str | torch.device = "auto",
        strategy: str = "auto",
        seed: int | None = None,
        deterministic: bool = False,
        run_dir: str | Path | None = None,
        resume: str | Path = "never",
        accept_changes: bool = False,
        checkpoint: str | Checkpointing | None = "every epoch",
        on_nonfinite: str = "stop",
        callbacks: Sequence[Callback | EMA | SWA] = (),
        loggers: Sequence[Any] | None = None,
        progress: bool = True,
        log_every: str | Duration = "50 steps",
        on_oom: str = "stop",
        stop_after: str | Duration | None = None,
        profile: bool | int | str | None = None,
        find_syncs: bool | int | str = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"model is a {type(model).__name__}. It must be a torch.nn.Module: an instance, not the class."
            )
        if loss is not None and step_fn is not None:
            raise ArgumentError(
                "loss and step_fn were both given. step_fn returns the loss itself: leave one of them out."
            )
        average, other_callbacks = find_average(ema, callbacks)
        check_callbacks(other_callbacks)
        interval = parse_duration(log_every, name="log_every")
        if interval.unit != "steps":
            raise ArgumentError(
                f'log_every={str(log_every)!r} is in {interval.unit}. It must be in steps, such as "50 steps".'
            )
        stop_after_s = parse_stop_after(stop_after)
        traced = parse_batches(profile, name="profile")
        searched = parse_batches(find_syncs, name="find_syncs")
        if traced is not None and run_dir is None:
            raise ArgumentError("profile= writes a trace into the run's folder, and there is none. Give run_dir.")
        policy = checkpoint if isinstance(checkpoint, Checkpointing) else Checkpointing(every=checkpoint)
        keeping = Keeping(policy, [each for each in other_callbacks if isinstance(each, BestCheckpoint)])
        if seed is not None:
            check_seed(seed)
        self.device = resolve_device(local_device(device))
        self._world = world = _choose_world(strategy, self.device)
        resolved_loss = resolve_loss(loss, dict(loss_args or {}))
        resolved_metrics = resolve_metrics(metrics, labels=_labels(resolved_loss))
        if world.size > 1:
            check_metrics_mergeable(resolved_metrics)
        self.model = model.to(self.device)
        loss_function: object = None if resolved_loss is None else resolved_loss.function
        if isinstance(loss_function, nn.Module):
            loss_function.to(self.device)  # class weights
        if freeze:
            freeze_parameters(self.model, freeze)
        if gradient_checkpointing:
            recompute_activations(self.model, gradient_checkpointing)
        self._precision = resolve_precision(precision, self.device, map_tensors)
        use_channels_last(self.model, channels_last, device=self.device, precision=self._precision)
        optimization = Optimization(
            optimizer=optimizer,
            lr=lr,
            optimizer_args=optimizer_args or {},
            parameter_groups=parameter_groups or {},
            scheduler=scheduler,
            scheduler_args=scheduler_args or {},
            scheduler_every=scheduler_every,
            scheduler_monitor=scheduler_monitor,
            scaler_args=scaler_args or {},
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            grad_norms=grad_norms,
            on_nonfinite=check_policy(on_nonfinite, self._precision),
        )
        self._accumulate = accumulate
        choice = choose_engine(
            engine,
            compile=compile,
            device=self.device,
            splits=on_oom == "split",
            has_step_fn=step_fn is not None,
            num_optimizers=len(optimizer) if isinstance(optimizer, Mapping) else 1,
            recomputes=bool(gradient_checkpointing),
        )
        self._windows = optimization.make_windows(
            self.model,
            precision=self._precision,
            device=self.device,
            world=world,
            is_recorded=choice.recorder is not None,
        )
        optimizers = {name: updates.optimizer for name, updates in self._windows.by_name.items()}
        self.optimizer: Any = optimizers if isinstance(optimizer, Mapping) else next(iter(optimizers.values()), None)
        if average is not None:
            self._windows.refuse_averaging()
        self._memory = OnOutOfMemory(self, on_oom)
        engine_phases = choice.compile_model(self.model, device=self.device, say=self.say)
        eager = self._memory.watch(
            EagerEngine(self.model, loss=resolved_loss, step_fn=step_fn),
            windows=self._windows,
            precision=self._precision,
            phases=engine_phases,
        )
        self._engine, engine_phases = choice.record(
            eager,
            engine_phases,
            windows=self._windows,
            context=CaptureContext(
                device=self.device,
                precision=self._precision,
                held=held_results(has_metrics=bool(resolved_metrics)),
                say=self.say,
                warn=lambda line: self._run.warn(line),  # there is no run yet
                steps_done=lambda: self._run.progress.steps_done,
                is_watched=any(
                    type(each).on_step_end is not Callback.on_step_end and not each.only_looks
                    for each in other_callbacks
                ),
            ),
        )
        self._first_batch = FirstBatch(resolved_loss)
        run_dir, goes_on, resumption = find_together(world, resume, run_dir, accept_changes=accept_changes)
        # One process shows and writes, whatever the others are told to.
        display = make_progress(progress and world.is_main)
        self._files = RunFiles(
            run_dir if world.is_main else None,
            loggers=loggers,
            policy=policy,
            display=display,
            is_main=world.is_main,
            goes_on=goes_on,
        )
        self._sources = DataInUse(
            device=self.device,
            seed=seed,
            say=self._files.say,
            rank=world.rank,
            size=world.size,
            take_seed=lambda own: world.gather(own)[0],
        )
        self._run = Run(
            trainer=self,
            metrics=resolved_metrics,
            callbacks=list(other_callbacks),
            files=self._files,
            display=display,
            sources=self._sources,
            first_batch=self._first_batch,
            keeping=keeping,
            windows=self._windows,
            precision=self._precision,
            engine_phases=engine_phases,
            determinism=resolve_determinism(deterministic),
            averaging=NO_AVERAGING,
            engine=self._engine,
            log_every=int(interval.amount),
            seed=seed,
            world=world,
            resumption=resumption,
            on_nonfinite=on_nonfinite,
            stop_after_s=stop_after_s,
        )
        self._engine.line = choice.line
        if self._precision.note:
            self.say(self._precision.note)
        if choice.is_news:
            (self._run.warn if choice.is_warning else self.say)(choice.line)
        self._run.watchers = make_watchers(
            profile=traced,
            waits=searched if world.is_main else None,
            looks=world.is_main,
            run_dir=self._files.path,
            device=self.device,
            say=self.say,
        )
        if average is not None:
            averaging = self._run.averaging = Averaging(self.model, average, self._run.progress)
            if average.steps_between is not None:  # with fp16, being told of each update waits for the device
                next(iter(self._windows.by_name.values())).on_update.append(averaging.after_update)

    # -- your own loop ----------------------------------------------------------------------------------------------

    def epochs(
        self, epochs: int | None = None, *, steps: int | None = None, seconds: float | None = None
    ) -> Iterator[Epoch]:
        """Yield epochs until the first of the budgets is used up.

        Budgets count from the trainer's first epoch: `epochs(5)` on a trainer that has done three gives two more.

        Raises:
            ArgumentError: no budget, or one that is not positive.
        """
        return run_epochs(self._run, Budget.of(epochs, steps, seconds))

    def forward(self, batch: Any) -> Outcome:
        """Return the model's output and the loss for a batch; the first batch of each source is checked."""
        try:
            if self._first_batch.is_pending:
                return self._engine.forward_first(self._first_batch, batch, self._run.phase.name)
            return self._engine.forward(batch)
        except BaseException as error:
            explained = None
            if isinstance(error, (IndexError, ValueError)):
                where = f"A {self._run.phase.name} batch after step {self.progress.steps_done}"
                explained = explain_late_failure(error, self._engine.loss, batch, where=where)
            elif is_out_of_memory(error):
                explained = self._memory.explain(error, part="the forward pass", batch=batch)
            self._run.note(explained or error)
            if explained is not None:
                raise explained from error
            raise

    def step(
        self, loss: Tensor, *, items: Tensor | float | None = None, optimizer: Optimizer | str | None = None
    ) -> None:
        """Backpropagate a loss; at the end of an accumulation window update the parameters and free their gradients.

        A window that the data end in, or that is open when `epoch.train` is left by `break`, is shorter: its update is made then,
        divided by what it has.

        Args:
            loss: a scalar, the mean over the (micro-)batch.
            items: what the loss is a mean over: a number, or a scalar tensor, for which nothing waits; the batch's samples when
                left out. `outcome.items` when `forward` computed the loss. Gradients of a window and means in the records are
                weighted with it. A batch of 0 items counts nothing; where that number is a tensor its gradient must be finite all
                the same: `(losses * mask).sum() / mask.sum().clamp(min=1)`.
            optimizer: which one, by name or as an object, where there are several; the loss then gives gradients to its
                parameters only.
        Raises:
            ArgumentError: outside of `epoch.train`, or the first loss is no scalar or has no gradient; items are no number.
            NumericsError: the loss is not finite, or a gradient of those that were looked at, and `on_nonfinite` stops; fp16 cannot
                find a scale.
        """
        run, updates = self._run, None
        try:
            if not run.phase.is_training:
                raise ArgumentError(
                    "step() was called outside of epoch.train(...). Call it inside that loop, once a batch."
                )
            if self._first_batch.loss_is_unchecked:
                self._first_batch.check_loss(loss)
            updates = self._windows.of(optimizer)
            items = run.phase.batch_samples if items is None else check_items(items)
            try:
                updates.backward(loss, items)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    self._first_batch.check_loss(
                        loss
                    )  # no scalar, or without a gradient: says so; another error goes on
                raise
            run.after_micro_batch(loss, items, updates)
            if updates.micro_batches >= updates.accumulate:
                updates.update() if run.is_alone else self._windows.update(updates)
                run.after_update(updates)
        except NonFinite as found:
            assert updates is not None
            run.nonfinite.answer(found, updates)
        except BaseException as error:
            explained = self._memory.explain(error) if is_out_of_memory(error) else None
            run.note(explained or error)
            if explained is not None:
                raise explained from error
            raise

    def measure(self, outcome: Any) -> None:
        """Feed an outcome of `forward` to the metrics, and in an evaluation its loss to the mean; waits for nothing."""
        self._run.measure(outcome)

    def log(self, **values: Tensor | float) -> None:
        """Average values over the phase under way: they become `train/<name>` or `val/<name>` in the epoch's row.

        Args:
            values: a scalar counts as the mean of the batch, a vector as one value a sample; tensors stay on the device.
        Raises:
            ArgumentError: outside of `epoch.train` and `epoch.evaluate`.
        """
        self._run.log(values)

    def stop(self, reason: StopReason | str = StopReason.REQUESTED) -> None:
        """End the run after this step, in good order: evaluation, row and last save still happen.

        Where several processes train together they stop at the same step: the next one at which `log_every` has them read the loss,
        or the end of the epoch. It is enough that one of them asks.

        Args:
            reason: what the records say; a `StopReason` or its name in lower case, such as "early".
        """
        self._run.request_stop(StopReason.of(reason))

    def say(self, line: str) -> None:
        """Show a line to people, and keep it in the run's log."""
        self._files.say(line)

    def save(self) -> Path | None:
        """Write a checkpoint into the run directory now; None when there is none, or it was just saved.

        Within a batch of a training loop it is written once more when the batch is over: only then can a run go on from it.
        Several processes, of which perhaps only one calls this, write it together when they next agree: at the next log point, or
        at the end of the epoch. None then; `on_checkpoint` tells when it is there.
        """
        return self._run.saves.ask()

    # -- the whole run ----------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        batch_size: int | None = None,
        micro_batch: int | None = None,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
    ) -> FitResult:
        """Train, and evaluate after every epoch: `velodrome.loop.fit` on this trainer.

        Args:
            train: a loader, an iterable of batches, or a dataset or tensors with `batch_size`.
            val: the same, or None.
            epochs, steps, seconds: the run ends with the first of these that is used up, counted from the trainer's first epoch;
                steps at the end of a batch, in which several optimizers may each make one.
            batch_size: samples a batch, for a dataset or tensors; samples an update where `micro_batch` is given.
            micro_batch: samples that go through the model of one process at once; sets `accumulate` for this call, to
                batch_size / micro_batch in one process.
            eval_batch_size: the same for `val`; when left out `batch_size`, or 1000 where there is none.
            shuffle: draw a new order of a dataset or tensors every epoch.
        """
        try:
            size = batch_size
            if micro_batch is not None:
                size = self._split_batch_size(batch_size, micro_batch)
            train = self._sources.get(train, role="train", batch_size=size, shuffle=shuffle)
            self._run.going_on.foresee(train)
            if val is not None:
                size = eval_batch_size
                if size is None and self._sources.needs_batch_size(val):
                    size = batch_size
                val = self._sources.get(val, role="val", batch_size=size, default_batch_size=1000)
                self._first_batch.foresee(getattr(val, "columns", None))
            with self._engine.driven():
                return fit(self, train, val, epochs=epochs, steps=steps, seconds=seconds)
        except BaseException as error:
            self._run.refuse(error)
            raise
        finally:
            self._set_accumulate(self._accumulate)

    def evaluate(self, data: Any, *, batch_size: int | None = None, name: str | None = None) -> dict[str, float]:
        """Return the exact means of loss and metrics over the data, such as `{"loss": 0.3, "accuracy": 0.9}`.

        Args:
            data: a loader, an iterable of batches, a dataset or tensors.
            batch_size: samples a batch; 1000 for a dataset or tensors when left out.
            name: within the training loop, in a callback's `on_step_end` say: records the values as `<name>/...`, in a row of this step
                and, when no later evaluation has that name, in the epoch's row.
        Raises:
            ArgumentError: a name was given outside of the training loop, or is taken.
        """
        self._run.finish_left_phase()
        if name is not None:
            self._run.claim_name(name, only_within=True)
        keep = self._run.is_under_way  # a callback's data come again every epoch
        role = name or "eval"
        source = self._sources.get(data, role=role, batch_size=batch_size, default_batch_size=1000, keep=keep)
        return run_evaluation(self, self._run, source, name=role)

    def predict(self, data: Any, *, batch_size: int | None = None) -> Any:
        """Return the model's outputs for all samples, in their order, on the CPU.

        Args:
            data: a loader, which is read in the order of its data and to the end whatever its shuffle and drop_last say; an
                iterable of batches, a dataset or tensors. Targets are left out: the last element of a tuple of two or more.
            batch_size: samples a batch; 1000 for a dataset or tensors when left out.
        Returns:
            One tensor with a first dimension of all samples, or the list of the batches' outputs when they are no tensors.
        Raises:
            ArgumentError: a sampler decides the order of a loader, or it leaves samples out.
        """
        source = self._sources.get(data, role="predict", batch_size=batch_size, default_batch_size=1000, keep=False)
        return run_prediction(self._run, source, self._memory.predict, map_tensors)

    def check_lengths(
        self, train: Any, *, epochs: int | None = None, steps: int | None = None, seconds: float | None = None
    ) -> None:
        """Refuse what does not fit into a run of this length, a warm-up that is longer say, without training or writing anything.

        Raises:
            ArgumentError: as `fit` would.
        """
        source = self._sources.get(train, role="train")
        self._run.check_lengths(source, Budget.of(epochs, steps, seconds))

    def _split_batch_size(self, batch_size: int | None, micro_batch: int) -> int:
        """Make the windows of this fit of as many micro-batches as a batch needs; return the size of one, over all processes."""
        accumulate = num_micro_batches(batch_size, micro_batch, processes=self._world.size)
        if self._accumulate not in (1, accumulate):
            raise ArgumentError(
                f"accumulate={self._accumulate} was given to the trainer, and batch_size={batch_size} with micro_batch={micro_batch} "
                f"to fit, which makes {accumulate}. Give one of the two."
            )
        self._set_accumulate(accumulate)
        return (batch_size or 0) // accumulate

    def _set_accumulate(self, accumulate: int) -> None:
        for updates in self._windows.by_name.values():
            updates.accumulate = accumulate

    def explain(self) -> str:
        """Return the calls of a run of this trainer, in order and with who owns each: only what is switched on.

        Printed before a run, lengths that follow from the data are not known yet.
        """
        return self._run.explain()

    # -- what has come out ------------------------------------------------------------------------------------------

    @property
    def result(self) -> FitResult:
        """History, best epoch and reason of the end, so far."""
        run = self._run
        return FitResult(
            history=[dict(row) for row in self._files.history],
            stop_reason=run.stop_reason,
            best=run.keeping.best,
            run_dir=self._files.path,
            bill=run.clock.bill,
            waits=tuple(run.watchers.sentences),
        )

    @property
    def averaging(self) -> NoAveraging:
        """The average of the weights: inside of `with trainer.averaging.applied():` the model carries it."""
        return self._run.averaging

    @property
    def progress(self) -> Progress:
        """Counters of epochs, steps and samples done."""
        return self._run.progress

    @property
    def run_dir(self) -> Path | None:
        """The run's folder, or None when nothing is written."""
        return self._files.path


def _choose_world(strategy: str, device: torch.device) -> World:
    """Return the processes to train with.

    Raises:
        ArgumentError: an unknown strategy, or "ddp" in a process that is alone.
    """
    if strategy not in _STRATEGIES:
        raise ArgumentError(f"strategy={strategy!r} is unknown. {nearest(str(strategy), _STRATEGIES)}")
    world = SINGLE if strategy == "single" else join_world(device)
    if strategy == "ddp" and world.size == 1:
        raise ArgumentError(
            'strategy="ddp" needs several processes, and this one is alone. Start the script with '
            '"torchrun --nproc-per-node 2 script.py", or leave strategy out.'
        )
    return world


def _labels(loss: Loss | None) -> Labels:
    """Return what the loss tells about how targets are to be read."""
    if loss is None:
        return Labels()
    return Labels(
        is_binary=loss.is_binary,
        binary_threshold=loss.binary_threshold,
        threshold_is_known=loss.kind != "other" or loss.is_binary,
        ignore_index=loss.ignore_index if loss.kind == "classes" else None,
    )
