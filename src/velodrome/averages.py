"""Which average of the weights to keep, in the user's words: `EMA` and `SWA`. What keeps it is `step/averaging.py`."""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from velodrome.errors import ArgumentError
from velodrome.loop.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from velodrome.loop.durations import Duration

__all__ = ["EMA", "SWA", "find_average"]

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")


@dataclass(frozen=True)
class EMA:
    """The exponential moving average of the weights: with each update, `average = decay * average + (1 - decay) * weights`.

    Give it to a trainer as `ema=`, or among the callbacks; `ema=0.999` is `EMA(0.999)`. The first average is the weights after the
    first update. Training goes on from the raw weights, evaluations use the average, and both are saved. Running statistics of
    normalisation layers are averaged too; all other buffers are copied.

    Args:
        decay: from 0 to 1, without 1. The average looks back over about 1 / (1 - decay) updates.
        every: updates between two averagings: a number, or a text such as "10 steps".
        start: what is done before averaging begins: a number of updates, "500 steps" or "2 epochs".
        warmup: begin with a smaller decay, min(decay, (1 + n) / (10 + n)) after n averagings: the first weights are soon forgotten.
        evaluate: which weights evaluations use once there is an average: "averaged" or "raw".
    Raises:
        ArgumentError: a value is out of its range.
    Cost: memory for a second copy of the model; one read and one write of all weights a time.
    Source: `torch.optim.swa_utils.get_ema_multi_avg_fn`; the warm-up is that of TensorFlow's `ExponentialMovingAverage`.
    """

    decay: float = 0.999
    _: KW_ONLY
    every: int | str = 1
    start: int | str = 0
    warmup: bool = False
    evaluate: Literal["averaged", "raw"] = "averaged"
    steps_between: int = field(init=False, repr=False, compare=False)
    _function: Callable[..., None] = field(init=False, repr=False, compare=False)

    kind = "ema"
    averages_statistics = True
    epochs_between = None

    def __post_init__(self) -> None:
        if not _is_number(self.decay) or not 0 <= self.decay < 1:
            raise ArgumentError(
                f"decay={self.decay!r} is no decay of an average. It must be at least 0 and below 1, such as 0.999: with 1 the average "
                f"would never change."
            )
        if not isinstance(self.warmup, bool):
            raise ArgumentError(f"warmup={self.warmup!r} is neither True nor False. Give one of them.")
        _check_evaluate(self.evaluate)
        _read_start(self.start)
        every = _read(self.every, "every", "steps", '"10 steps"')
        if every.unit != "steps":
            raise ArgumentError(
                f"every={self.every!r} of an EMA is in {every.unit}. It must be in updates, such as 1 or "
                f'"10 steps". An average of one set of weights an epoch is SWA.'
            )
        object.__setattr__(self, "steps_between", int(every.amount))
        object.__setattr__(self, "_function", get_ema_multi_avg_fn(self.decay))

    @property
    def evaluates_averaged(self) -> bool:
        """Whether evaluations use the average once there is one."""
        return self.evaluate == "averaged"

    def find_start(self, *, epochs: int | None, steps: int | None) -> tuple[int, int]:
        """Return how many steps and epochs are done before averaging begins.

        Raises:
            ArgumentError: a run of this budget would be over by then.
        """
        return _within_budget(self, *_read_start(self.start), epochs=epochs, steps=steps)

    def function(self, num_averaged: int) -> Callable[[list[Tensor], list[Tensor], int], None]:
        """Return torch's function that moves the averages towards the weights, in place."""
        if self.warmup and (decay := (1 + num_averaged) / (10 + num_averaged)) < self.decay:
            return get_ema_multi_avg_fn(decay)
        return self._function

    def weight_of_newest(self) -> float:
        """Return the smallest share of the newest weights in the average."""
        return 1 - self.decay


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: the plain mean of the weights at the ends of the last epochs.

    Give it to a trainer as `ema=`, or among the callbacks. Training goes on from the raw weights, evaluations use the average once
    there is one, and both are saved. BatchNorm statistics are recomputed over the training data each time the average has
    changed. A high constant or cyclic learning rate while it averages is what the method is made for: give it as the schedule.

    Args:
        start: what is done before averaging begins: "75%" of the run's epochs (of its steps, when only these are limited), or a
            number of epochs, also as "10 epochs". The weights at the end of the epoch after are the first.
        every: epochs between two averagings: a number, or a text such as "2 epochs".
        evaluate: which weights evaluations use once there is an average: "averaged" or "raw".
    Raises:
        ArgumentError: a value is out of its range.
    Cost: memory for a second copy of the model; with BatchNorm layers, one forward pass over the training data for each epoch
        averaged.
    Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima and Better Generalization",
        UAI 2018; `torch.optim.swa_utils`.
    """

    _: KW_ONLY
    start: int | str = "75%"
    every: int | str = "epoch"
    evaluate: Literal["averaged", "raw"] = "averaged"
    epochs_between: int = field(init=False, repr=False, compare=False)

    kind = "swa"
    averages_statistics = False
    steps_between = None

    def __post_init__(self) -> None:
        _check_evaluate(self.evaluate)
        if self._fraction is None and (unit := _read_start(self.start, "epochs", "75%"))[0]:
            raise ArgumentError(
                f'start={self.start!r} of an SWA is {unit[0]} steps. Give epochs, or a share such as "75%".'
            )
        every = _read(self.every, "every", "epochs", '"2 epochs"')
        if every.unit != "epochs":
            raise ArgumentError(
                f"every={self.every!r} of an SWA is in {every.unit}. It must be in epochs, such as 1 or "
                f'"2 epochs". An average over updates is EMA(every=...).'
            )
        object.__setattr__(self, "epochs_between", int(every.amount))

    @property
    def evaluates_averaged(self) -> bool:
        """Whether evaluations use the average once there is one."""
        return self.evaluate == "averaged"

    def find_start(self, *, epochs: int | None, steps: int | None) -> tuple[int, int]:
        """Return how many steps and epochs are done before averaging begins.

        Raises:
            ArgumentError: a run of this budget would be over by then, or has no length to take a share of.
        """
        share = self._fraction
        if share is None:
            return _within_budget(self, *_read_start(self.start, "epochs", "75%"), epochs=epochs, steps=steps)
        if epochs is not None:
            return 0, min(math.ceil(share * epochs), epochs - 1)  # the last epoch at least
        if steps is not None:
            return min(math.ceil(share * steps), steps - 1), 0
        raise ArgumentError(
            f"SWA(start={self.start!r}) is a share of the run, whose length is limited in seconds only. Give SWA(start=10), say, for 10 "
            f"epochs, or limit the run with epochs= or steps=."
        )

    def function(self, num_averaged: int) -> Callable[[list[Tensor], list[Tensor], int], None]:
        """Return torch's function that moves the averages towards the weights, in place."""
        return get_swa_multi_avg_fn()

    def weight_of_newest(self) -> float:
        """Return 0: it depends on how many weights there will be."""
        return 0.0

    @property
    def _fraction(self) -> float | None:
        match = _PERCENT.fullmatch(self.start) if isinstance(self.start, str) else None
        if match is None:
            return None
        if not float(match[1]) < 100:
            raise ArgumentError(
                f'start={self.start!r} is after the end of the run. It must be below "100%", such as "75%".'
            )
        return float(match[1]) / 100


def find_average(ema: object, callbacks: Any) -> tuple[EMA | SWA | None, Any]:
    """Return the average that was asked for, by argument or among the callbacks, and the callbacks without it.

    Args:
        ema: None, a decay, an `EMA` or an `SWA`.
        callbacks: what the user gave; anything but a list or tuple comes back as it is, for `check_callbacks`.
    Raises:
        ArgumentError: no average, or more than one.
    """
    if _is_number(ema):
        ema = EMA(decay=ema)  # pyright: ignore[reportArgumentType]
    if ema is not None and not isinstance(ema, (EMA, SWA)):
        raise ArgumentError(
            f"ema={ema!r} is no average of weights. Give a decay such as 0.999, EMA(...), SWA(...) or None."
        )
    given: Any = callbacks if isinstance(callbacks, (list, tuple)) else []
    averages = [*([] if ema is None else [ema]), *(each for each in given if isinstance(each, (EMA, SWA)))]
    if len(averages) > 1:
        raise ArgumentError(
            f"{len(averages)} averages of the weights were given: {' and '.join(map(repr, averages))}. A trainer keeps one: leave the "
            f"others out."
        )
    others = [each for each in given if not isinstance(each, (EMA, SWA))]
    return (averages[0] if averages else None), (others if given else callbacks)


def _read_start(start: int | str, unit: str = "steps", example: str = "2 epochs") -> tuple[int, int]:
    """Return steps and epochs to be done before averaging begins."""
    if start == 0 and not isinstance(start, bool):
        return 0, 0
    duration = _read(start, "start", unit, f'"{example}"')
    if duration.unit not in ("steps", "epochs"):
        raise ArgumentError(
            f'start={start!r} is in {duration.unit}. It must be in steps or epochs, such as "{example}".'
        )
    return (int(duration.amount), 0) if duration.unit == "steps" else (0, int(duration.amount))


def _read(value: int | str, name: str, unit: str, example: str) -> Duration:
    if isinstance(value, int) and not isinstance(value, bool):
        return parse_duration(f"{value} {unit}" if value > 0 else f"0 {unit}", name=name)
    if not isinstance(value, str):
        raise ArgumentError(
            f"{name}={value!r} is no duration. Give a whole number of {unit}, or a text such as {example}."
        )
    return parse_duration(value, name=name)


def _within_budget(
    average: EMA | SWA, first_step: int, first_epoch: int, *, epochs: int | None, steps: int | None
) -> tuple[int, int]:
    for first, length, unit in ((first_step, steps, "steps"), (first_epoch, epochs, "epochs")):
        if length is not None and first >= length:
            raise ArgumentError(
                f"{average!r} begins after {first} {unit}, when this run of {length} {unit} is over: there would be no average. "
                f"Give a smaller start, or a longer run."
            )
    return first_step, first_epoch


def _check_evaluate(evaluate: object) -> None:
    if evaluate not in ("averaged", "raw"):
        raise ArgumentError(
            f'evaluate={evaluate!r} is unknown. It is "averaged" or "raw": the weights that evaluations use. Both are saved.'
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
