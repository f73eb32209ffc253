"""When to save, and which epochs were the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.loop.durations import parse_duration
from velodrome.monitor import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.callbacks.best_checkpoint import BestCheckpoint
    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.loop.progress import Progress

__all__ = ["Keeping", "Verdict"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the monitored value of an epoch means for its weights."""

    is_best: bool = False
    """better than every epoch before"""
    is_kept: bool = False
    """among the best ones that the policy keeps"""
    is_wanted: bool = False
    """to be saved for being among the best, by this value or by that of a `BestCheckpoint`"""
    monitor: str = ""
    value: float = 0.0


class Keeping:
    """Applies a `Checkpointing` policy to a run's progress, and asks those who keep checkpoints by a value of their own.

    Raises:
        ArgumentError: the policy's `every` is no duration.
    """

    def __init__(self, policy: Checkpointing, others: Sequence[BestCheckpoint] = ()) -> None:
        self._policy = policy
        self._others = others
        self._every = None if policy.every is None else parse_duration(policy.every, name="checkpoint")
        self._keep_every = None if policy.keep_every is None else parse_duration(policy.keep_every, name="keep_every")
        self._ranking = Ranking(policy.by, policy.keep_best)
        self._for_good: list[tuple[int, int]] = []  # how many times `keep_every` was over, and the step
        self._saved_at = 0.0
        self._saved_samples = 0
        self.best: dict[str, Any] | None = None
        """the row of the best epoch so far"""

    @property
    def monitor(self) -> str:
        """The value that decides."""
        return self._policy.monitor

    @property
    def has_own_monitor(self) -> bool:
        """Whether another value decides than by default."""
        return self.monitor != type(self._policy).monitor

    def describe(self) -> dict[str, str]:
        """Return when it saves after a step and after an epoch, in words; no entry where it does not: for `Trainer.explain`."""
        found = {}
        if self._every is not None:
            every = self._every.unit.removesuffix("s") if self._every.amount == 1 else str(self._every)
            found["epoch" if self._every.unit == "epochs" else "step"] = f"save every {every}"
        if self._policy.keep_best or self._others:
            count = self._policy.keep_best
            best = f"when {self.monitor} is {'the best so far' if count <= 1 else f'among the {count} best'}"
            found["epoch"] = f"{found['epoch']}, or {best}" if "epoch" in found else f"save {best}"
        return found

    @property
    def policy(self) -> Checkpointing:
        """The settings."""
        return self._policy

    @property
    def counts_steps(self) -> bool:
        """Whether saves are due by the number of steps, which is the same in every process."""
        return self._every is not None and self._every.unit == "steps"

    @property
    def kept_steps(self) -> list[int]:
        """The steps whose checkpoints stay: they are among the best, or kept for good."""
        own = [*self._ranking.steps, *(step for _, step in self._for_good)]
        return own + [step for other in self._others for step in other.kept_steps]

    def begin_save(self, progress: Progress) -> None:
        """A checkpoint is about to be written: decide whether it is kept for good, which it knows of itself."""
        every = self._keep_every
        if every is None:
            return
        done = {
            "epochs": progress.epochs_done,
            "steps": progress.steps_done,
            "samples": progress.samples_done,
            "seconds": progress.seconds,
        }
        times = int(done[every.unit] // every.amount)
        if times > (self._for_good[-1][0] if self._for_good else 0):
            self._for_good.append((times, progress.steps_done))

    def forget(self, step: int) -> None:
        """The checkpoint of this step could not be written: the next one is kept for good in its place."""
        self._for_good = [each for each in self._for_good if each[1] != step]

    def state_dict(self) -> dict[str, Any]:
        """Return the best epochs so far; time and samples until the next save are counted from this one."""
        return {
            "best": self.best,
            "best_ones": [list(each) for each in self._ranking.places],
            "for_good": [list(each) for each in self._for_good],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best = state["best"]
        self._ranking.load(state["best_ones"])
        self._for_good = [(times, step) for times, step in state.get("for_good", ())]

    def count_from(self, progress: Progress) -> None:
        """Count time and samples until the next save from here on: a run begins or goes on, or a save was tried."""
        self._saved_at, self._saved_samples = perf_counter(), progress.samples_done

    def is_due_after_step(self, progress: Progress) -> bool:
        """Return whether to save after this step."""
        every = self._every
        if every is None or every.unit == "epochs":
            return False
        if every.unit == "steps":
            return progress.steps_done % int(every.amount) == 0
        if every.unit == "samples":
            return progress.samples_done // int(every.amount) > self._saved_samples // int(every.amount)
        return perf_counter() - self._saved_at >= every.amount

    def is_due_after_epoch(self, progress: Progress) -> bool:
        """Return whether to save after this epoch."""
        every = self._every
        return every is not None and every.unit == "epochs" and progress.epochs_done % int(every.amount) == 0

    def judge(self, row: Mapping[str, Any], step: int) -> Verdict:
        """Compare an epoch with those before; a value that is missing or NaN is never the best."""
        verdict = self._judge(row, step)
        wanted = [other.judge(row, step) for other in self._others]
        return replace(verdict, is_wanted=verdict.is_kept or any(wanted))

    def _judge(self, row: Mapping[str, Any], step: int) -> Verdict:
        monitor, best = self._policy.monitor, self.best or {}
        if monitor == "val/loss" and monitor not in row and monitor not in best:
            monitor = "train/loss"  # a run without validation has a best epoch too; no other metric has a stand-in
        value = row.get(monitor)
        if not isinstance(value, (int, float)):  # an epoch that was not validated, between others that were
            return Verdict(monitor=monitor if monitor in best else "", value=math.nan)
        if math.isnan(value):
            return Verdict(monitor=monitor, value=value)
        if monitor not in best:  # the first one, or the first that was validated: what the stand-in said counts no more
            self._ranking.places.clear()
        is_best = self._policy.is_better(float(value), best.get(monitor))
        if is_best:
            self.best = dict(row)
        is_kept = self._ranking.add(float(value), step)
        return Verdict(is_best=is_best, is_kept=is_kept, monitor=monitor, value=float(value))
