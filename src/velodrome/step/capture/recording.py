"""A recorded piece of work for batches of one shape, and where its results lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.step.capture.ring import Ring
from velodrome.step.eager import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.step.capture.context import Held
    from velodrome.step.capture.static_batch import StaticBatch

__all__ = ["CannotRecord", "Recording", "Results", "make_recording"]


class CannotRecord(Exception):
    """Steps of this model cannot be recorded; says why."""


@dataclass(kw_only=True)
class Results:
    """What one step gave, as tensors that a recording writes anew each time."""

    loss: Tensor
    items: Tensor | float | None
    output: Any
    target: Any
    norms: dict[str, Tensor]


@dataclass(kw_only=True)
class Recording:
    """A recorded step for batches of one shape."""

    static: StaticBatch
    loss: Ring
    items: Ring | None = None
    num_items: float | None = None
    """what the loss is a mean over, where that is a number"""
    output: Ring | None = None
    target: Ring | None = None
    target_place: int | None = None
    """which of the batch's tensors the target is"""
    norms: dict[str, Ring] = field(default_factory=dict)
    replay: Callable[[], None] = lambda: None
    outcome_loss: Tensor | None = None

    @property
    def rings(self) -> list[Ring]:
        """All of them."""
        found = [self.loss, self.items, self.output, self.target, *self.norms.values()]
        return [ring for ring in found if ring is not None]

    def write(self, results: Results) -> None:
        """Keep what a step gave: recorded with it."""
        self.loss.write(results.loss)
        for ring, value in ((self.items, results.items), (self.output, results.output), (self.target, results.target)):
            if ring is not None and isinstance(value, Tensor):
                ring.write(value)
        for name, ring in self.norms.items():
            ring.write(results.norms[name])

    def rewind(self) -> None:
        """Forget results that were tried."""
        for ring in self.rings:
            ring.rewind()

    def advance(self) -> None:
        """Take note that a replay counts."""
        for ring in self.rings:
            ring.advance()

    def outcome(self, tensors: list[Tensor]) -> Outcome:
        """Return what the next replay will have filled in."""
        loss = self.outcome_loss = self.loss.peek()
        target = self.target.peek() if self.target is not None else None
        if self.target_place is not None:
            target = tensors[self.target_place]
        output = None if self.output is None else self.output.peek()
        return Outcome(loss, output, target, self.num_items if self.items is None else self.items.peek())


def make_recording(static: StaticBatch, results: Results, *, held: Held) -> Recording:
    """Return a recording with room for results like these, that has no replay yet.

    Args:
        static: the batch that they are of.
        results: of one time.
        held: how many results must not be written over. There is room for twice as many: batches of other shapes come between.
    Raises:
        CannotRecord: outputs are wanted, and are no tensors.
    """
    slots = 2 * held.losses
    recording = Recording(static=static, loss=Ring(results.loss, slots))
    recording.norms = {name: Ring(norm, slots) for name, norm in results.norms.items()}
    if isinstance(results.items, Tensor):
        recording.items = Ring(results.items, slots)
    else:
        recording.num_items = results.items
    if not held.batches or results.output is None:
        return recording
    if not isinstance(results.output, Tensor):
        raise CannotRecord(f"the metrics want the model's output, which is a {type(results.output).__name__}")
    slots = min(2 * held.batches, held.numbers // max(1, results.output.numel()) + 2)
    recording.output = Ring(results.output, slots)
    places = [place for place, own in enumerate(static.tensors) if own is results.target]
    if places:
        recording.target_place = places[0]
    elif isinstance(results.target, Tensor):
        recording.target = Ring(results.target, slots)
    elif results.target is not None:
        raise CannotRecord(f"the metrics want the target, which is a {type(results.target).__name__}")
    return recording
