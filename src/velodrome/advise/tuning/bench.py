"""One configuration of a recipe on the bench: built, warmed up, and ready to train a few steps by the clock.

It trains with `Trainer.fit`, as the real run does, but writes nothing. The first steps, whose losses are compared, are those of the real
run, schedule included. Far more steps are timed than the run may have, so those hardly move the weights: the learning rate is a millionth
of the recipe's, which changes nothing about the time of a step. Average of weights and early stopping are left to `rehearse`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from velodrome.advise.memory import peak_bytes
from velodrome.advise.samples import num_samples
from velodrome.advise.tuning.aside import aside, build_quietly, digest_of, validation_loader, wait_for
from velodrome.advise.tuning.facts import BenchFacts, Round
from velodrome.advise.tuning.neighbours import fraction_of_others, read_usage
from velodrome.advise.tuning.rehearsal import Rehearsal, StopAfter, rehearse
from velodrome.callbacks.base import Callback
from velodrome.cores import usable_cores, usable_processors
from velodrome.errors import DataError
from velodrome.step.schedules.base import NO_SCHEDULE
from velodrome.step.schedules.rates import set_rate

if TYPE_CHECKING:
    from velodrome.advise.tuning.setup import Setup
    from velodrome.recipes.build import Ready
    from velodrome.trainer import Trainer

__all__ = ["WARM_UP_STEPS", "Bench"]

WARM_UP_STEPS = 12
"""that every configuration begins with, on the same weights and batches: their losses are compared"""
_LEFT_OUT = frozenset({"ema", "stop_after"})
_TIMED_RATE = 1e-6
"""of the learning rate that the first steps end with: thousands of steps at it move the weights by less than one of theirs"""
_LEAST_STEPS = 3
_PREFETCHED = 2  # batches a worker, of torch's loader: those of the pause between two rounds are no speed
_LONGEST_REST_S = 1.0


class _Clock(Callback):
    """Takes the time from the end of one step to that of another."""

    only_looks = True

    def __init__(self) -> None:
        self.first = self.last = -1
        self.begun = self.ended = 0.0

    def on_step_end(self, trainer: Trainer) -> None:
        steps = trainer.progress.steps_done
        if steps == self.first:
            wait_for(trainer.device)
            self.begun = perf_counter()
        elif steps == self.last:
            wait_for(trainer.device)
            self.ended = perf_counter()


class Bench:
    """A configuration in this process.

    Args:
        setup: what to run.
    Raises:
        RecipeError, ArgumentError, DataError: it cannot be built.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._threads: int | None = None
        self._created = perf_counter()
        with aside(self._setup):
            self.ready = build_quietly(setup)
            train = self.ready.train
            if iter(train) is train:
                raise DataError(
                    f'data.name="{self.ready.recipe.data.name}" gives an iterator, which can be read once only. Trials read the training data '
                    f"again and again: return a list, a dataset, or a loader."
                )
            arguments = {key: value for key, value in self.ready.trainer_arguments.items() if key not in _LEFT_OUT}
            self._clock = _Clock()
            trial = replace(self.ready, callbacks=(), trainer_arguments=arguments)
            self._first_steps = StopAfter(WARM_UP_STEPS)
            self._trainer = trial.make_trainer(progress=False, callbacks=[self._clock, self._first_steps])
            self._val: Any = None
            self._val_scale = 0.0
            self._step_s = 0.0
            self._build_s = perf_counter() - self._created

    def start(self) -> BenchFacts:
        """Train the first steps and learn what there is to know."""
        with aside(self._setup):
            total, val = num_samples(self.ready.data.val), self.ready.val
            if total is not None:
                val = validation_loader(self.ready, min(total, self.ready.recipe.train.eval_batch_size))
            elif val is not None and iter(val) is val:
                val = None
            # With what a schedule asks for: the length of the run, and the validation of an epoch.
            begun = perf_counter()
            result = self._trainer.fit(self.ready.train, val, **self.ready.fit_arguments)
            wait_for(self._trainer.device)
            first_steps_s = perf_counter() - begun
            self._first_steps.steps = sys.maxsize
            digest = digest_of(self._trainer.model)
            self._hold_weights()
            first_evaluation_s = 0.0 if total is None else self._longer_at_first(total)
            self._train(lead=1, steps=_LEAST_STEPS)  # for a first idea of the time of a step
            # Only what these steps took longer than later ones belongs to the start: the others have their price in an epoch.
            steps_s = first_steps_s - WARM_UP_STEPS * self._step_s
            warm_up_s = self._build_s + max(0.0, steps_s) + first_evaluation_s
            # A run lowers its threads beside workers when it first meets its data, and they stay so: every round has them too.
            self._threads = torch.get_num_threads()
            return self._facts(warm_up_s, result.metrics["train/loss"], digest)

    def _longer_at_first(self, num_samples: int) -> float:
        """Evaluate a batch of so many samples at most, twice; return how much longer the first time took."""
        source = self._source(min(num_samples, self.ready.recipe.train.eval_batch_size))
        taken = []
        for _ in range(2):
            begun = perf_counter()
            self._trainer.evaluate(source)
            wait_for(self._trainer.device)
            taken.append(perf_counter() - begun)
        return max(0.0, taken[0] - taken[1])

    def round(self, seconds: float) -> Round:
        """Train for about so long by the clock, and evaluate for at most about as long."""
        with aside(self._setup, threads=self._threads):
            before = read_usage()
            workers = getattr(self.ready.train, "num_workers_in_use", 0)
            steps = max(_LEAST_STEPS, round(seconds / max(self._step_s, 1e-6)))
            turn_s = self._train(lead=2 + _PREFETCHED * workers, steps=steps)
            per_epoch = _steps_per_epoch(self.ready)
            evaluation_s = self._evaluate(seconds)
            others_fraction = fraction_of_others(before, read_usage(), processors=usable_processors())
            if workers:  # they may still fetch what nobody will ask for, and the next turn is another's
                sleep(min(_LONGEST_REST_S, _PREFETCHED * workers * self._step_s))
            return Round(
                step_s=self._step_s,
                turn_s=0.0 if per_epoch is not None and steps >= per_epoch else turn_s,
                evaluation_s=evaluation_s,
                memory_bytes=peak_bytes(self._trainer.device),
                others_fraction=others_fraction,
            )

    def rehearse(self, *, steps: int, val_samples: int | None) -> Rehearsal:
        """See the function of that name; the model and the trainer are new ones."""
        return rehearse(self._setup, steps=steps, val_samples=val_samples)

    def close(self) -> None:
        """Nothing is to be done: what a bench in this process holds, it holds as any object does."""

    def _hold_weights(self) -> None:
        """Let the schedule go, and lower the learning rate so far that any number of steps can be timed."""
        for updates in self._trainer._run.windows.by_name.values():
            updates.schedule = NO_SCHEDULE
            for group in updates.optimizer.param_groups:
                if "lr" in group:  # an optimizer of the user's may have none
                    set_rate(group, group["lr"] * _TIMED_RATE)

    def _train(self, *, lead: int, steps: int) -> float:
        """Train and take the time of a step; return what the beginning and the end of it took besides."""
        clock, done = self._clock, self._trainer.progress.steps_done
        clock.first, clock.last = done + lead, done + lead + steps
        begun = perf_counter()
        self._trainer.fit(self.ready.train, steps=clock.last)
        whole = perf_counter() - begun
        self._step_s = (clock.ended - clock.begun) / steps
        return max(0.0, whole - (lead + steps) * self._step_s)

    def _evaluate(self, seconds: float) -> float:
        """Evaluate on as much of the validation data as that takes; return the seconds for all of them."""
        if self.ready.val is None:
            return 0.0
        if self._val is None:
            self._val, self._val_scale = self._choose_validation(seconds)
        if not self._val_scale:
            return 0.0
        begun = perf_counter()
        self._trainer.evaluate(self._val)
        wait_for(self._trainer.device)
        return (perf_counter() - begun) * self._val_scale

    def _choose_validation(self, seconds: float) -> tuple[Any, float]:
        """Return the validation data, or a part that is evaluated in time, and how many times the part makes the whole."""
        total, size = num_samples(self.ready.data.val), self.ready.recipe.train.eval_batch_size
        if total is None:  # a loader or an iterable of the user's: all or nothing
            if iter(self.ready.val) is self.ready.val:
                return None, 0.0
            return self._trainer._sources.get(self.ready.val, role="val"), 1.0
        first = self._source(min(size, total))
        self._trainer.evaluate(first)  # warms up
        begun = perf_counter()
        self._trainer.evaluate(first)
        wait_for(self._trainer.device)
        num_batches = max(1, int(seconds / max(perf_counter() - begun, 1e-6)))
        part = min(total, num_batches * size)
        return self._source(part), total / part

    def _source(self, count: int) -> Any:
        """Return the first validation samples, checked and placed once as those of a run are."""
        return self._trainer._sources.get(validation_loader(self.ready, count), role="val")

    def _is_resident(self) -> bool:
        return self._trainer._sources.get(self.ready.train, role="train").gives_placed_batches

    def _facts(self, warm_up_s: float, loss: float, digest: str) -> BenchFacts:
        ready, trainer = self.ready, self._trainer
        modules = list(trainer.model.modules())
        per_epoch, columns = _steps_per_epoch(ready), getattr(ready.train, "columns", None)
        optimizer = trainer.optimizer
        return BenchFacts(
            device=trainer.device.type,
            cores=usable_cores(),
            threads=torch.get_num_threads(),
            steps_per_epoch=per_epoch,
            total_steps=_total_steps(ready, per_epoch),
            num_train_samples=num_samples(ready.data.train),
            num_val_samples=num_samples(ready.data.val),
            num_workers=getattr(ready.train, "num_workers_in_use", 0),
            is_in_memory=columns is not None,
            is_resident=columns is not None and self._is_resident(),
            is_indexed=columns is None and num_samples(ready.data.train) is not None,
            has_validation=ready.val is not None,
            has_convolutions=any(isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)) for each in modules),
            has_dropout=any(isinstance(each, nn.modules.dropout._DropoutNd) and each.p for each in modules)
            or any(isinstance(getattr(each, "dropout", None), float) and each.dropout for each in modules),
            optimizer_is_fused=isinstance(optimizer, torch.optim.Optimizer) and bool(optimizer.defaults.get("fused")),
            can_tf32=trainer.device.type == "cuda" and torch.cuda.get_device_capability(trainer.device)[0] >= 8,
            warm_up_s=warm_up_s,
            loss=loss,
            digest=digest,
        )


def _steps_per_epoch(ready: Ready) -> int | None:
    try:
        batches = len(ready.train)
    except TypeError:
        return None
    return math.ceil(batches / ready.trainer_arguments.get("accumulate", 1))


def _total_steps(ready: Ready, per_epoch: int | None) -> int | None:
    epochs, steps = ready.fit_arguments.get("epochs"), ready.fit_arguments.get("steps")
    return steps if steps is not None else None if epochs is None or per_epoch is None else epochs * per_epoch
