"""One configuration of a recipe on the bench: built, warmed up, and ready to train a few steps by the clock.

It trains with `Trainer.fit`, as the real run does, but writes nothing. What concerns a whole run only is left out of the timed steps:
schedule, average of weights, early stopping. `rehearse` has all of it.
"""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from velodrome.callbacks.base import Callback
from velodrome.devices import resolve_device
from velodrome.errors import DataError
from velodrome.recipes.build import build, evaluation_loader, is_indexed
from velodrome.recipes.read import load_recipe
from velodrome.recipes.switches import WHOLE_RUN
from velodrome.seeding import random_state_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from velodrome.advise.tuning.setup import Setup
    from velodrome.recipes.build import Ready
    from velodrome.trainer import Trainer

__all__ = ["WARM_UP_STEPS", "Bench", "Facts", "Rehearsal", "Round", "rehearse"]

WARM_UP_STEPS = 12
"""that every configuration begins with, on the same weights and batches: their losses are compared"""
_LEFT_OUT = WHOLE_RUN - {"compile", "engine"}
_LEAST_STEPS = 3
_PREFETCHED = 2  # batches a worker, of torch's loader: those of the pause between two rounds are no speed


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a configuration once it has warmed up."""

    device: str
    cores: int
    threads: int
    steps_per_epoch: int | None
    total_steps: int | None
    """of the whole run; None where a clock ends it, or the data do not know their length"""
    num_workers: int
    is_in_memory: bool
    """whether training batches are gathered from tensors"""
    is_indexed: bool
    """whether samples are fetched one by one from a dataset that workers could share"""
    has_validation: bool
    num_val_samples: int | None
    has_convolutions: bool
    has_dropout: bool
    num_train_samples: int | None
    optimizer_is_fused: bool
    can_tf32: bool
    warm_up_s: float
    """of the first steps: what is compiled or captured is in here"""
    loss: float
    """mean over the first steps"""
    digest: str
    """of the weights after the first steps"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one turn of a configuration gave."""

    step_s: float
    turn_s: float
    """what beginning and ending an epoch takes besides its steps; 0 where the timed steps have epochs' ends among them"""
    evaluation_s: float
    """of all validation data"""
    memory_bytes: int | None
    """largest so far: of the process, or on CUDA of the device"""

    def epoch_s(self, steps: int | None) -> float:
        """Return the time of an epoch with its evaluation; that of a step where the length of an epoch is not known."""
        return self.step_s if steps is None else steps * self.step_s + self.turn_s + self.evaluation_s


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a few steps of the real run gave, with schedule and average, and the evaluation at their end."""

    steps: int
    train: dict[str, float]
    val: dict[str, float]
    seconds: float


class _Clock(Callback):
    """Takes the time from the end of one step to that of another."""

    def __init__(self) -> None:
        self.first = self.last = -1
        self.begun = self.ended = 0.0
        # The object's, not the class's: an engine that records steps looks again at all that a callback of steps could have changed
        # before each of them, and a clock changes nothing.
        self.on_step_end = self._look

    def _look(self, trainer: Trainer) -> None:
        steps = trainer.progress.steps_done
        if steps == self.first:
            _wait_for(trainer.device)
            self.begun = perf_counter()
        elif steps == self.last:
            _wait_for(trainer.device)
            self.ended = perf_counter()


class _StopAfter(Callback):
    """Ends a run of full length after a few steps: schedules are those of the full length."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.progress.steps_done >= self.steps:
            trainer.stop()


class Bench:
    """A configuration in this process.

    Args:
        setup: what to run.
    Raises:
        RecipeError, ArgumentError, DataError: it cannot be built.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        with _aside(self._setup):
            self.ready = _build(setup)
            train = self.ready.train
            if iter(train) is train:
                raise DataError(
                    f'data.name="{self.ready.recipe.data.name}" gives an iterator, which can be read once only. Trials read the training data '
                    f"again and again: return a list, a dataset, or a loader."
                )
            arguments = {key: value for key, value in self.ready.trainer_arguments.items() if key not in _LEFT_OUT}
            self._clock = _Clock()
            trial = replace(self.ready, callbacks=(), trainer_arguments=arguments)
            self._trainer = trial.make_trainer(progress=False, callbacks=[self._clock])
            self._val: Any = None
            self._val_scale = 0.0
            self._step_s = 0.0

    def start(self) -> Facts:
        """Train the first steps and learn what there is to know."""
        with _aside(self._setup):
            begun = perf_counter()
            result = self._trainer.fit(self.ready.train, steps=WARM_UP_STEPS)
            digest = _digest(self._trainer.model)
            if self.ready.val is not None and (total := num_samples(self.ready.data.val)) is not None:
                self._trainer.evaluate(self._source(min(total, self.ready.recipe.train.eval_batch_size)))
            _wait_for(self._trainer.device)
            warm_up_s = perf_counter() - begun
            self._train(lead=1, steps=_LEAST_STEPS)  # for a first idea of the time of a step
            return self._facts(warm_up_s, result.metrics["train/loss"], digest)

    def round(self, seconds: float) -> Round:
        """Train for about so long by the clock, and evaluate for at most about as long."""
        with _aside(self._setup):
            workers = getattr(self.ready.train, "num_workers_in_use", 0)
            steps = max(_LEAST_STEPS, round(seconds / max(self._step_s, 1e-6)))
            turn_s = self._train(lead=2 + _PREFETCHED * workers, steps=steps)
            per_epoch = _steps_per_epoch(self.ready)
            return Round(
                step_s=self._step_s,
                turn_s=0.0 if per_epoch is not None and steps >= per_epoch else turn_s,
                evaluation_s=self._evaluate(seconds),
                memory_bytes=_peak_memory(self._trainer.device),
            )

    def rehearse(self, *, steps: int, val_samples: int | None) -> Rehearsal:
        """See the function of that name; the model and the trainer are new ones."""
        return rehearse(self._setup, steps=steps, val_samples=val_samples)

    def close(self) -> None:
        """Nothing is to be done: what a bench in this process holds, it holds as any object does."""

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
        _wait_for(self._trainer.device)
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
        _wait_for(self._trainer.device)
        num_batches = max(1, int(seconds / max(perf_counter() - begun, 1e-6)))
        part = min(total, num_batches * size)
        return self._source(part), total / part

    def _source(self, count: int) -> Any:
        """Return the first validation samples, checked and placed once as those of a run are."""
        return self._trainer._sources.get(validation_loader(self.ready, count), role="val")

    def _facts(self, warm_up_s: float, loss: float, digest: str) -> Facts:
        ready, trainer = self.ready, self._trainer
        modules = list(trainer.model.modules())
        per_epoch, columns = _steps_per_epoch(ready), getattr(ready.train, "columns", None)
        optimizer = trainer.optimizer
        return Facts(
            device=trainer.device.type,
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            steps_per_epoch=per_epoch,
            total_steps=_total_steps(ready, per_epoch),
            num_train_samples=num_samples(ready.data.train),
            num_val_samples=None if ready.data.val is None else num_samples(ready.data.val),
            num_workers=getattr(ready.train, "num_workers_in_use", 0),
            is_in_memory=columns is not None,
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


def rehearse(setup: Setup, *, steps: int, val_samples: int | None) -> Rehearsal:
    """Train the first steps of the real run, schedule, average and callbacks included, and evaluate; nothing is written.

    Args:
        setup: what to run.
        steps: after which it ends, as if somebody had asked it to.
        val_samples: evaluate on so many; None is all.
    """
    with _aside(setup):
        ready = _build(setup)
        trainer = ready.make_trainer(progress=False, callbacks=[_StopAfter(steps)])
        val, total = ready.val, None if ready.data.val is None else num_samples(ready.data.val)
        if val is not None and val_samples is not None and total is not None and val_samples < total:
            val = validation_loader(ready, val_samples)
        begun = perf_counter()
        result = trainer.fit(ready.train, val, **ready.fit_arguments)
        seconds = perf_counter() - begun
    numbers = {key: value for key, value in result.metrics.items() if isinstance(value, float)}
    parts = {
        part: {key.removeprefix(f"{part}/"): value for key, value in numbers.items() if key.startswith(f"{part}/")}
        for part in ("train", "val")
    }
    return Rehearsal(steps=trainer.progress.steps_done, train=parts["train"], val=parts["val"], seconds=seconds)


def num_samples(data: Any) -> int | None:
    """Return how many samples tensors or a dataset hold; None for a loader or another iterable."""
    if not is_indexed(data):
        return None
    first = data[0] if isinstance(data, tuple) else next(iter(data.values())) if isinstance(data, dict) else data
    try:
        return len(first)
    except TypeError:
        return None


def first_samples(data: Any, count: int) -> Any:
    """Return the first samples of tensors or a dataset, as the same kind of thing."""
    if isinstance(data, tuple):
        return tuple(each[:count] for each in data)
    if isinstance(data, dict):
        return {key: each[:count] for key, each in data.items()}
    return torch.utils.data.Subset(data, range(count))


def validation_loader(ready: Ready, count: int) -> Any:
    """Return a loader over the first validation samples."""
    part = replace(ready.data, val=first_samples(ready.data.val, count))
    return evaluation_loader(part, ready.recipe)


@contextmanager
def _aside(setup: Setup) -> Iterator[None]:
    """Run with the threads of a setup; threads and random numbers of the process are put back."""
    before, train = torch.get_num_threads(), load_recipe(setup.recipe, setup.all_overrides).recipe.train
    with random_state_kept(resolve_device(train.device)):
        torch.set_num_threads(train.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _build(setup: Setup) -> Ready:
    return build(load_recipe(setup.recipe, setup.all_overrides), say=lambda line: None)


def _steps_per_epoch(ready: Ready) -> int | None:
    try:
        batches = len(ready.train)
    except TypeError:
        return None
    return math.ceil(batches / ready.trainer_arguments.get("accumulate", 1))


def _total_steps(ready: Ready, per_epoch: int | None) -> int | None:
    epochs, steps = ready.fit_arguments.get("epochs"), ready.fit_arguments.get("steps")
    return steps if steps is not None else None if epochs is None or per_epoch is None else epochs * per_epoch


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # SYNC: a clock is read
    elif device.type == "mps":
        torch.mps.synchronize()  # SYNC: a clock is read


def _digest(model: nn.Module) -> str:
    """Return what two models have in common only if every bit of their state is the same."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            found.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )  # SYNC: once a trial
    return found.hexdigest()


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not getrusage: its maximum begins with that of the process that started this one
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return None
