"""Which learning rate? The range test: it rises from step to step, and what the loss does meanwhile tells.

```text
find_lr(model, train, loss=..., optimizer=...)   a trainer of its own with an LRFinder, then everything put back
LRFinder()                                       the same as a callback, for a trainer that you make
```

Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, https://arxiv.org/abs/1506.01186, section 3.3; the exponential
sweep, smoothing and stop as in fastai's `LRFinder` and davidtvs/pytorch-lr-finder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from velodrome.advise.finders import ModelKept, check_number, own_arguments, position_kept
from velodrome.advise.lr_curve import LRCurve
from velodrome.callbacks.base import Callback
from velodrome.devices import resolve_device
from velodrome.errors import ArgumentError, NumericsError
from velodrome.nonfinite.snapshot import RunSnapshot
from velodrome.seeding import get_random_state, random_state_kept, set_random_state
from velodrome.step.schedules.base import NO_SCHEDULE
from velodrome.step.schedules.rates import set_rate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from velodrome.trainer import Trainer

__all__ = ["LRFinder", "find_lr"]


class LRFinder(Callback):
    """Turns a fit into a range test: the learning rate rises from step to step, and in the end everything is as it was.

    Weights, buffers, optimizer, random numbers and counters are put back when the fit ends; `result` has the curve. The trainer must
    write nothing and have no schedule. `velodrome.find_lr` makes such a trainer.

    >>> finder = LRFinder(lowest=1e-5, highest=1.0)
    >>> trainer.fit(train, steps=finder.steps)
    >>> finder.result.suggestion

    Args:
        lowest, highest: the range; parameter groups keep their proportions to the first one.
        steps: updates from the lowest to the highest.
        smoothing: share of the mean loss that a step leaves.
        diverged_at: the sweep ends when the smoothed loss is this many times the lowest one so far, or not finite.
    Raises:
        ArgumentError: a number is out of range.
    Cost: a second copy of weights and optimizer; a wait for the device at each step.
    """

    def __init__(
        self,
        *,
        lowest: float = 1e-7,
        highest: float = 10.0,
        steps: int = 100,
        smoothing: float = 0.95,
        diverged_at: float = 4.0,
    ) -> None:
        for name, value in (
            ("lowest", lowest),
            ("highest", highest),
            ("smoothing", smoothing),
            ("diverged_at", diverged_at),
        ):
            check_number(name, value)
        if not 0 < lowest < highest or not math.isfinite(highest):
            raise ArgumentError(
                f"lowest={lowest!r} and highest={highest!r} are no range. It must be 0 < lowest < highest."
            )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
            raise ArgumentError(f"steps={steps!r} is too few for a curve. It must be a whole number of at least 10.")
        if not 0 <= smoothing < 1:
            raise ArgumentError(f"smoothing={smoothing!r} is no share. It must be at least 0 and below 1.")
        if not diverged_at > 1:
            raise ArgumentError(
                f"diverged_at={diverged_at!r} must be above 1: a loss is 1 times the lowest one at its best."
            )
        self.steps = steps
        self._lowest, self._highest = lowest, highest
        self._smoothing, self._diverged_at = smoothing, diverged_at
        self.result = LRCurve((), (), ())
        """what came out; empty before the fit has ended"""
        self._sweep = _Sweep()
        self._kept: _Kept | None = None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: the same factor from each to the next."""
        return self._lowest * (self._highest / self._lowest) ** (step / (self.steps - 1))

    def on_fit_start(self, trainer: Trainer) -> None:
        """Remember everything, and begin with the lowest learning rate.

        Raises:
            ArgumentError: the trainer writes, has several optimizers, or a schedule.
        """
        run = trainer._run
        if trainer.run_dir is not None:
            raise ArgumentError(
                f"LRFinder is no run to keep, and run_dir={str(trainer.run_dir)!r} was given. Leave it out, or call velodrome.find_lr."
            )
        if len(run.windows.by_name) != 1:
            raise ArgumentError(
                f"LRFinder raises one learning rate, and there are {len(run.windows.by_name)} optimizers."
            )
        (updates,) = run.windows.by_name.values()
        if updates.schedule is not NO_SCHEDULE:
            raise ArgumentError(
                "LRFinder sets the learning rate itself, and the trainer has a scheduler. Leave it out for the test."
            )
        self._kept = _Kept.take(trainer)
        self._sweep = _Sweep()
        groups = updates.optimizer.param_groups
        base = float(groups[0]["lr"])  # SYNC: once, before training
        self._shares = [float(group["lr"]) / base if base else 1.0 for group in groups]  # SYNC: once, before training
        trainer.step = self._watch(trainer)  # the losses pass through here, whichever way the trainer is driven
        self._set_rate(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        """Take down the loss of the step, and raise the learning rate."""
        sweep = self._sweep
        sweep.add(self.rate(len(sweep.rates)), self._smoothing)
        if sweep.is_over(self._diverged_at):
            sweep.has_diverged = True
        if sweep.has_diverged or len(sweep.rates) >= self.steps:
            trainer.stop()
        else:
            self._set_rate(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Keep the curve, and put everything back."""
        self.result = self._sweep.curve(planned_steps=self.steps)
        trainer.__dict__.pop("step", None)
        if self._kept is not None:
            self._kept.put_back(trainer)
            self._kept = None

    def _set_rate(self, trainer: Trainer) -> None:
        rate = self.rate(len(self._sweep.rates))
        (updates,) = trainer._run.windows.by_name.values()
        for group, share in zip(updates.optimizer.param_groups, self._shares, strict=True):
            set_rate(group, share * rate)

    def _watch(self, trainer: Trainer) -> Any:
        step, sweep = trainer.step, self._sweep

        def watched(loss: Tensor, **arguments: Any) -> None:
            sweep.losses_of_step.append((loss.detach().clone(), trainer._run.phase.batch_samples))
            step(loss, **arguments)

        return watched


@dataclass
class _Sweep:
    """What the steps so far gave."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    losses_of_step: list[tuple[Tensor, int]] = field(default_factory=list)
    has_diverged: bool = False
    _mean: float = 0.0

    def add(self, rate: float, smoothing: float) -> None:
        """Take down a step: its loss is the mean over its micro-batches."""
        samples = sum(count for _, count in self.losses_of_step)
        loss = sum(float(each) * count for each, count in self.losses_of_step) / max(samples, 1)  # SYNC: it decides
        self.losses_of_step.clear()
        self._mean = smoothing * self._mean + (1 - smoothing) * loss
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._mean / (1 - smoothing ** len(self.rates)))

    def is_over(self, diverged_at: float) -> bool:
        """Return whether the loss has risen so far that going on shows nothing more."""
        now = self.smoothed[-1]
        return not math.isfinite(now) or (len(self.smoothed) > 1 and now > diverged_at * min(self.smoothed) > 0)

    def curve(self, *, planned_steps: int) -> LRCurve:
        """Return the steps whose losses are numbers, and what ended them."""
        count = next((index for index, each in enumerate(self.smoothed) if not math.isfinite(each)), len(self.rates))
        at, what = None, ""
        # SYNC: once, after training: the fit may have ended within a step
        begun = [float(loss) for loss, _ in self.losses_of_step]
        lost = next((each for each in (*self.losses[count:], *begun) if not math.isfinite(each)), None)
        if lost is not None:
            at, what = count + 1, f"the loss was {'NaN' if math.isnan(lost) else 'infinite'}"
        return LRCurve(
            rates=tuple(self.rates[:count]),
            losses=tuple(self.losses[:count]),
            smoothed=tuple(self.smoothed[:count]),
            has_diverged=self.has_diverged or at is not None,
            not_finite_at=at,
            not_finite=what,
            planned_steps=planned_steps,
        )


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Everything that a test changes, as it was."""

    snapshot: RunSnapshot
    random_state: dict[str, Any]
    progress: dict[str, Any]
    keeping: dict[str, Any]
    num_rows: int

    @classmethod
    def take(cls, trainer: Trainer) -> _Kept:
        run = trainer._run
        return cls(
            snapshot=RunSnapshot.take(run),
            random_state=get_random_state(trainer.device),
            progress={each.name: getattr(run.progress, each.name) for each in fields(run.progress)},
            keeping=run.keeping.state_dict(),
            num_rows=len(run.files.history),
        )

    def put_back(self, trainer: Trainer) -> None:
        run = trainer._run
        self.snapshot.put_back(run)
        set_random_state(self.random_state, trainer.device)
        for name, value in self.progress.items():
            setattr(run.progress, name, value)
        run.keeping.load_state_dict(self.keeping)
        del run.files.history[self.num_rows :]


def find_lr(
    model: nn.Module,
    train: Any,
    *,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    batch_size: int | None = None,
    shuffle: bool = True,
    **trainer_arguments: Any,
) -> LRCurve:
    """Raise the learning rate from step to step, and tell where the loss falls fastest.

    ```python
    curve = velodrome.find_lr(model, train, loss="cross_entropy", optimizer="sgd")
    curve.suggestion, curve.plot("lr.png")
    ```

    Afterwards everything is as it was: weights, buffers, the optimizer where an instance was given, random numbers, and the place in the
    data. The model is on the trainer's device, as after `fit`.

    Args:
        model: trained for the test, and put back.
        train: a loader, an iterable of batches, or a dataset or tensors with `batch_size`.
        lowest, highest, steps: the range, and the updates from its one end to the other; it ends early when the loss diverges.
        batch_size, shuffle: for a dataset or tensors.
        trainer_arguments: those of `Trainer`; schedule, average, compilation and callbacks are left out.
    Raises:
        ArgumentError: an argument is wrong, or asks for something to be written.
        DataError: the data are an iterator, which the test would use up.
    """
    from velodrome.trainer import Trainer

    own = own_arguments(trainer_arguments)
    finder = LRFinder(lowest=lowest, highest=highest, steps=steps)
    with position_kept(train), random_state_kept(resolve_device(own.get("device", "auto"))):
        before = ModelKept.take(model)
        try:
            trainer = Trainer(model, callbacks=[finder], progress=False, checkpoint=None, loggers=(), **own)
            trainer.fit(train, steps=steps, batch_size=batch_size, shuffle=shuffle)
        except NumericsError:  # the curve ends there
            if finder.result.not_finite_at is None:
                at, what = len(finder.result.rates) + 1, "a gradient was NaN or infinite"
                finder.result = replace(finder.result, has_diverged=True, not_finite_at=at, not_finite=what)
        finally:
            before.put_back()
    return finder.result
