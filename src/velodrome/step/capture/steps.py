"""Whole steps are recorded, and compared with those of the eager engine before they are trusted; nothing of that counts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.step.capture.recording import CannotRecord, Recording, Results, make_recording
from velodrome.step.capture.rehearsal import Kept, PythonSide, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from velodrome.step.capture.context import CaptureContext
    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.capture.premises import Premises
    from velodrome.step.capture.replays import Replays
    from velodrome.step.capture.static_batch import StaticBatch
    from velodrome.step.eager import Outcome
    from velodrome.step.updates import Updates

__all__ = ["NUM_COMPARED", "StepRecorder", "without_kept_casts"]

NUM_COMPARED = 3
"""steps made both ways before a recording is trusted"""


class StepRecorder:
    """Records steps.

    Args:
        forward: of the eager engine.
        modules: the model, and the loss where that is a module.
        updates: of the only optimizer.
        replays: of its steps.
        premises: of the recordings.
        recorder: of the device.
        context: of the trainer.
    Cost: memory for a second copy of weights, buffers and optimizer state while a step is recorded; about ten steps' time.
    """

    def __init__(
        self,
        forward: Callable[[Any], Outcome],
        modules: Sequence[nn.Module],
        updates: Updates,
        replays: Replays,
        premises: Premises,
        recorder: Recorder,
        context: CaptureContext,
    ) -> None:
        self._forward = forward
        self._modules = modules
        self._updates = updates
        self._replays = replays
        self._premises = premises
        self._recorder = recorder
        self._context = context

    def record(self, static: StaticBatch) -> tuple[Recording, float]:
        """Return a recording of steps with such batches, and how far replays of it end from the eager engine, see `difference`.

        Raises:
            CannotRecord: says why.
        """
        self._premises.note()
        guard, device = self._updates.guard, self._context.device
        flag = getattr(guard, "flag", None)
        kept = Kept(
            {**self._premises.state, **({"the guard's flag": flag} if isinstance(flag, Tensor) else {})}, device
        )
        python = PythonSide(self._modules, device)
        try:
            recording = self._try_one(static, python)

            def work() -> None:
                recording.write(self._step(static.batch))

            kept.put_back()
            for _ in range(NUM_COMPARED):
                self._recorder.on_side(work)
            trusted = {**kept.read(), "loss": recording.loss.written(NUM_COMPARED).clone()}
            kept.put_back()
            recording.rewind()
            recording.replay = self._record_work(work)
            for _ in range(NUM_COMPARED):
                recording.replay()
            found = {**kept.read(), "loss": recording.loss.written(NUM_COMPARED).clone()}
        except BaseException:
            self._updates.free_gradients()  # of a step that was not made to its end: the next window would begin with them
            raise
        finally:
            kept.put_back()
            python.put_back()
        recording.rewind()
        start = {**kept.copies, "loss": torch.zeros_like(trusted["loss"])}
        differs, largest = difference(found, trusted, start)
        if differs:
            raise CannotRecord(f"{NUM_COMPARED} steps made both ways do not agree: {differs}")
        return recording, largest

    def _try_one(self, static: StaticBatch, python: PythonSide) -> Recording:
        """Make one step and watch it; return a recording with room for its results, that has no replay yet."""
        found: list[Results] = []
        self._replays.rates.refresh()
        with self._recorder.noting_waits() as waits:
            self._recorder.on_side(lambda: found.append(self._step(static.batch)))
        changed = python.put_back()
        if waits:
            raise CannotRecord(f"a step waits for the device ({waits[0]})")
        if changed:
            raise CannotRecord(changed)
        return make_recording(static, found[0], held=self._context.held)

    def _step(self, batch: Any) -> Results:
        """Make a whole step on the device."""
        with without_kept_casts():
            outcome = self._forward(batch)
            items = 1.0 if outcome.items is None else outcome.items
            loss, norms = self._updates.run_on_device(outcome.loss, items)
        output = outcome.output.detach() if isinstance(outcome.output, Tensor) else outcome.output
        return Results(loss=loss, items=outcome.items, output=output, target=outcome.target, norms=norms)

    def _record_work(self, work: Callable[[], None]) -> Callable[[], None]:
        rated = self._replays.rated
        if rated is None:
            raise CannotRecord("the loop was not told that it trains")
        rated.is_recorded = True
        try:
            return self._recorder.record(work)
        finally:
            rated.is_recorded = False


@contextmanager
def without_kept_casts() -> Iterator[None]:
    """Have autocast cast weights each time inside: a cast that it keeps would not be made again by a replay."""
    is_kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(is_kept)
