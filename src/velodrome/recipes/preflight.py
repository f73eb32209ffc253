"""Preflight: everything that a run does, done once on copies, and put away again: `velodrome train RECIPE --dry-run`.

```text
one step (forward, backward, update) and one evaluation batch, in memory          `try_out`, before
the step once more, in a run directory beside the target, with a save at its end
another copy goes on from that checkpoint: every number must be the one that was saved
a few more steps and an evaluation batch by the clock
the folder is removed
```
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.callbacks.base import Callback
from velodrome.checkpoint.read import read_state
from velodrome.checkpoint.space import Room, folder_bytes, nearest_folder
from velodrome.errors import ArgumentError, CheckpointError
from velodrome.loop.durations import parse_duration
from velodrome.recipes.loaders import training_loader
from velodrome.recipes.switches import WHOLE_RUN
from velodrome.run.room import measure_room
from velodrome.step.without_compiler import without_compiler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from velodrome.recipes.build import Ready, Trial
    from velodrome.trainer import Trainer

__all__ = ["Preflight", "preflight"]

_TIMED_STEPS = 4
_MOST_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found out."""

    room: Room
    not_resumable: str
    """why a run could not go on from its checkpoints; "" where it could"""
    step_s: float
    evaluation_batch_s: float
    """0 without validation data"""
    save_s: float
    num_saves: int
    seconds: float | None
    """about how long the run takes; None where nothing says how long it is"""


def preflight(
    ready: Ready,
    trial: Trial,
    run_dir: Path,
    *,
    steps: int | None,
    epochs: float | None,
    evaluation_batches: int | None,
) -> Preflight:
    """Save and load a checkpoint where the run would, measure a few steps, and leave nothing behind.

    Args:
        ready: what is to be trained; nothing of it is changed.
        trial: one step of a copy of it, done already.
        run_dir: where the run would go; on its volume the folder is made that is removed again.
        steps: of the whole run; None where that is not known.
        epochs: of the whole run; None where that is not known.
        evaluation_batches: after each epoch.
    Raises:
        ArgumentError: nothing can be written there.
        CheckpointError: the checkpoint cannot be written, or does not come back as it was.
    Cost: two copies of the model, some steps, a checkpoint on the disk.
    """
    with _folder_beside(run_dir) as folder:
        trainer, saved, save_s = _save(ready, folder / "run")
        not_resumable = str(read_state(saved).get("not_resumable", ""))
        if not not_resumable:
            _check_equal(trainer, _go_on(ready, folder / "run"))
        num_bytes = folder_bytes(saved)
        if ready.trainer_arguments.get("ema") is not None:  # nothing is averaged in a single step
            num_bytes += (saved / "model.safetensors").stat().st_size
    policy = ready.trainer_arguments["checkpoint"]
    num_saves = _num_saves(policy.every, steps=steps, epochs=epochs)
    step_s, evaluation_s = _time_steps(ready, trial), _time_evaluation(trial)
    seconds: float | None = ready.fit_arguments.get("seconds")
    if seconds is None and steps is not None:
        seconds = steps * step_s + (epochs or 1) * (evaluation_batches or 0) * evaluation_s + num_saves * save_s
    return Preflight(
        room=measure_room(policy, run_dir, num_bytes),
        not_resumable=not_resumable,
        step_s=step_s,
        evaluation_batch_s=evaluation_s,
        save_s=save_s,
        num_saves=num_saves,
        seconds=seconds,
    )


class _Clock(Callback):
    """Measures from the end of a step to the checkpoint after it."""

    begun = seconds = 0.0

    def on_step_end(self, trainer: Trainer) -> None:
        self.begun = perf_counter()

    def on_checkpoint(self, trainer: Trainer, path: Any) -> None:
        self.seconds = self.seconds or perf_counter() - self.begun


@contextmanager
def _folder_beside(run_dir: Path) -> Iterator[Path]:
    """Yield a new folder on the volume of the run directory, and remove it with all that is in it."""
    place = nearest_folder(run_dir.parent)
    try:
        folder = tempfile.TemporaryDirectory(dir=place, prefix=".velodrome-dry-run-")
    except OSError as error:
        raise ArgumentError(
            f"{run_dir} cannot be written: {error.strerror} at {place}. A run needs a folder that it may write into: choose another with "
            f"--out, or change the permissions.",
            path=run_dir,
        ) from error
    with folder as path:
        yield Path(path)


def _trainer(ready: Ready, folder: Path, **arguments: Any) -> Trainer:
    """Return a trainer of a copy of the model, without what makes sense for a whole run only."""
    own = {key: value for key, value in ready.trainer_arguments.items() if key not in WHOLE_RUN}
    copied = replace(ready, model=copy.deepcopy(ready.model), trainer_arguments={**own, "loggers": ()}, callbacks=())
    return copied.make_trainer(run_dir=folder, progress=False, **arguments)


def _save(ready: Ready, folder: Path) -> tuple[Trainer, Path, float]:
    """Train one step in a run directory; return the trainer, the checkpoint at its end, and how long it took to write."""
    clock = _Clock()
    trainer = _trainer(ready, folder, callbacks=[clock])
    trainer.fit(training_loader(ready.data, ready.recipe), steps=1)
    found = list((folder / "checkpoints").glob("step-*"))
    if not found:
        raise CheckpointError(
            f"No checkpoint could be written into {folder.parent.parent}: the warning above says why. Choose another folder with --out."
        )
    return trainer, found[0], clock.seconds


def _go_on(ready: Ready, folder: Path) -> Trainer:
    """Return a trainer that loaded the run's checkpoint: the run is over, so that nothing more is done."""
    trainer = _trainer(ready, folder, resume="auto")
    trainer.fit(training_loader(ready.data, ready.recipe), steps=1)
    return trainer


def _check_equal(trainer: Trainer, loaded: Trainer) -> None:
    """Compare what was trained with what was loaded.

    Raises:
        CheckpointError: names the first number that is another one.
    """
    for (name, tensor), (_, other) in zip(_numbers(trainer), _numbers(loaded), strict=True):
        if not torch.equal(tensor, other):
            raise CheckpointError(
                f"{name} came back from a checkpoint with other values than it was saved with. Check the disk, and that the model's "
                f"state_dict() and load_state_dict() belong together."
            )


def _numbers(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    yield from _tensors(trainer.model.state_dict(), "the model's")
    for name, updates in trainer._windows.by_name.items():
        with without_compiler():
            state = updates.optimizer.state_dict()["state"]
        yield from _tensors(state, f"state of {name}:")


def _tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, f"{name} {key}")
    elif isinstance(state, Iterable) and not isinstance(state, (str, bytes)):
        for index, value in enumerate(state):
            yield from _tensors(value, f"{name} {index}")


def _num_saves(every: str | None, *, steps: int | None, epochs: float | None) -> int:
    """Return about how many checkpoints a run writes; those of best epochs besides are not counted."""
    if every is None:
        return 1
    duration = parse_duration(every, name="checkpoint")
    length = {"epochs": epochs, "steps": steps}.get(duration.unit)
    return 1 if length is None else max(1, int(length / duration.amount))


def _time_steps(ready: Ready, trial: Trial) -> float:
    """Return the seconds a step, data included: from the end of one micro-batch to that of the next. The first step is over, which warms up."""
    trainer, ends = trial.trainer, []
    progress, accumulate = trainer.progress, ready.trainer_arguments.get("accumulate", 1)
    for epoch in trainer.epochs(steps=progress.steps_done + _TIMED_STEPS, seconds=progress.seconds + _MOST_SECONDS):
        for batch in epoch.train(training_loader(ready.data, ready.recipe)):
            outcome = trainer.forward(batch)
            trainer.step(outcome.loss, items=outcome.items)
            trainer.measure(outcome)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)  # SYNC: a few steps are timed, in a trial
            ends.append(perf_counter())
    return accumulate * (ends[-1] - ends[0]) / max(1, len(ends) - 1)


def _time_evaluation(trial: Trial) -> float:
    if trial.val_batch is None:
        return 0.0
    begun = perf_counter()
    trial.trainer.evaluate([trial.val_batch])
    return perf_counter() - begun
