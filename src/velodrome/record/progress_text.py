"""How numbers read on a terminal, and the line that an epoch leaves behind; ASCII, for any terminal."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "EpochSummary",
    "PhaseProgress",
    "format_duration",
    "format_epoch",
    "format_rate",
    "format_value",
    "format_values",
    "is_fraction",
]

_FRACTION = re.compile(r"(.*_)?acc(uracy)?|(.*_)?top_?(k|\d+)(_accuracy)?")
_GAP = "  "


def is_fraction(name: str) -> bool:
    """Tell whether a metric of this name is a share of samples, which people read as percent.

    >>> [is_fraction(name) for name in ("train/accuracy", "top5", "val/balanced_accuracy", "loss")]
    [True, True, True, False]
    """
    return _FRACTION.fullmatch(name.rpartition("/")[2].lower()) is not None


def format_value(name: str, value: float | None) -> str:
    """Return a value as people read it: shares in percent, a missing or NaN value as `nan`.

    >>> format_value("accuracy", 0.8194), format_value("loss", 0.5124), format_value("loss", 1.5e-5)
    ('81.9%', '0.512', '1.5e-05')
    """
    if value is None or not math.isfinite(value):
        return "nan" if value is None else str(float(value))
    if is_fraction(name) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def format_values(values: Mapping[str, float]) -> str:
    """Return `loss 0.512 accuracy 81.9%`."""
    return " ".join(f"{name} {format_value(name, value)}" for name, value in values.items())


def format_duration(seconds: float) -> str:
    """Return a time in the two largest units.

    >>> format_duration(1.94), format_duration(125), format_duration(3725)
    ('1.9 s', '2 min 05 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def format_rate(samples: int, seconds: float) -> str:
    """Return a speed, or nothing when there is none to tell.

    >>> format_rate(60000, 1.9), format_rate(3, 2.0), format_rate(0, 1.0)
    ('31,579 samples/s', '1.5 samples/s', '')
    """
    if samples <= 0 or seconds <= 0:
        return ""
    rate = samples / seconds
    return f"{rate:,.0f} samples/s" if rate >= 100 else f"{rate:.3g} samples/s"


def format_epoch(epoch: int, epochs: int | None) -> str:
    """Return `epoch 1/5`, `epoch 1` when the end is not known, nothing outside of training."""
    if epoch <= 0:
        return ""
    return f"epoch {epoch}" if epochs is None else f"epoch {epoch}/{epochs}"


@dataclass(kw_only=True)
class PhaseProgress:
    """One pass over data: what is known of it so far."""

    name: str
    epoch: int
    epochs: int | None
    total_batches: int | None
    started_s: float
    batches_done: int = 0
    samples_done: int = 0
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_training(self) -> bool:
        """Whether weights change in it."""
        return self.name == "train"

    @property
    def label(self) -> str:
        """`epoch 1/5 train`."""
        return f"{format_epoch(self.epoch, self.epochs)} {_short(self.name)}" if self.epoch > 0 else self.name

    def take(self, values: Mapping[str, float]) -> None:
        """Remember values to show; `train/loss` and `loss` are the same within the phase."""
        for name, value in values.items():
            split, slash, metric = name.partition("/")
            self.values[metric if slash and _short(split) == _short(self.name) else name] = value


class EpochSummary:
    """Collects the phases of an epoch and says one line when it is over.

    Training and the evaluation that follows it share a line, said when the evaluation ends. Training without
    one has its line said when the next phase begins, or at the close. Evaluation by itself has a line of its
    own.

    Args:
        say: shows a line to people.
        clock: seconds that never run backwards.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._trained: PhaseProgress | None = None
        self.phase: PhaseProgress | None = None

    def begin(self, name: str, epoch: int, epochs: int | None, total_batches: int | None) -> PhaseProgress:
        """Start a phase, ending the one before if nobody did."""
        self.end()
        if self._trained is not None and (name == "train" or epoch != self._trained.epoch):
            self.flush()
        self.phase = PhaseProgress(
            name=name, epoch=epoch, epochs=epochs, total_batches=total_batches, started_s=self._clock()
        )
        return self.phase

    def end(self) -> None:
        """End the phase, if one is open."""
        phase, self.phase = self.phase, None
        if phase is None:
            return
        phase.seconds = self._clock() - phase.started_s
        if phase.is_training:
            self._trained = phase
        else:
            trained, self._trained = self._trained, None
            self._say(_summarize([trained, phase] if trained is not None else [phase]))

    def show(self, values: Mapping[str, float]) -> None:
        """Take values for the open phase, or for the training that just ended and waits for its line."""
        phase = self.phase or self._trained
        if phase is not None:
            phase.take(values)

    def flush(self) -> None:
        """End what is open and say the line that waits for an evaluation, if there is one."""
        self.end()
        trained, self._trained = self._trained, None
        if trained is not None:
            self._say(_summarize([trained]))

    def close(self) -> None:
        """Say the line that waits, unless an error or a `break` cut short what is open: then the epoch has none."""
        if self.phase is not None:
            self.phase = self._trained = None
        self.flush()

    def measure_s(self, phase: PhaseProgress) -> float:
        """Return how long the phase has been going on."""
        return self._clock() - phase.started_s


def _summarize(phases: list[PhaseProgress]) -> str:
    first, *others = phases
    parts = [format_epoch(first.epoch, first.epochs)]
    parts.append(f"{_short(first.name) if first.epoch > 0 else first.name} {format_values(first.values)}".rstrip())
    parts += [f"{_short(phase.name)} {format_values(phase.values)}".rstrip() for phase in others]
    parts.append(format_duration(sum(phase.seconds for phase in phases)))
    parts.append(format_rate(first.samples_done, first.seconds))
    return _GAP.join(part for part in parts if part)


def _short(phase_name: str) -> str:
    return "val" if phase_name in ("evaluate", "evaluation", "eval", "validate", "validation") else phase_name
