"""The first steps of the real run, with all that belongs to it, and the evaluation at their end; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from velodrome.advise.samples import num_samples
from velodrome.advise.tuning.aside import aside, build_quietly, digest_of, validation_loader
from velodrome.callbacks.base import Callback

if TYPE_CHECKING:
    from velodrome.advise.tuning.setup import Setup
    from velodrome.trainer import Trainer

__all__ = ["Rehearsal", "StopAfter", "rehearse"]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a few steps of the real run gave, with schedule and average, and the evaluation at their end."""

    steps: int
    train: dict[str, float]
    val: dict[str, float]
    seconds: float
    digest: str = ""
    """of the weights at the end"""

    @property
    def loss_name(self) -> str:
        """Which loss says how well it learned: that of the validation where there is one."""
        return "val/loss" if "loss" in self.val else "train/loss"

    @property
    def loss(self) -> float:
        """That loss; NaN where neither part has one."""
        return (self.val if "loss" in self.val else self.train).get("loss", float("nan"))


class StopAfter(Callback):
    """Ends a run of full length after a few steps: schedules are those of the full length."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: Trainer) -> None:
        """Ask for the end once there are so many."""
        if trainer.progress.steps_done >= self.steps:
            trainer.stop()


def rehearse(setup: Setup, *, steps: int, val_samples: int | None) -> Rehearsal:
    """Train the first steps of the real run, schedule, average and callbacks included, and evaluate.

    Args:
        setup: what to run; everything is built anew.
        steps: after which it ends, as if somebody had asked it to.
        val_samples: evaluate on so many; None is all.
    """
    with aside(setup):
        ready = build_quietly(setup)
        trainer = ready.make_trainer(progress=False, callbacks=[StopAfter(steps)])
        val, total = ready.val, num_samples(ready.data.val)
        if val is not None and val_samples is not None and total is not None and val_samples < total:
            val = validation_loader(ready, val_samples)
        begun = perf_counter()
        result = trainer.fit(ready.train, val, **ready.fit_arguments)
        seconds = perf_counter() - begun
        digest = digest_of(trainer.model)
    numbers = {key: value for key, value in result.metrics.items() if isinstance(value, float)}
    parts = {
        part: {key.removeprefix(f"{part}/"): value for key, value in numbers.items() if key.startswith(f"{part}/")}
        for part in ("train", "val")
    }
    return Rehearsal(
        steps=trainer.progress.steps_done, train=parts["train"], val=parts["val"], seconds=seconds, digest=digest
    )
