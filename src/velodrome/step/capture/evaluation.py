"""Evaluation batches recorded and replayed: forward pass and loss, as one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.step.capture.limits import layout_of, reason_against_modules
from velodrome.step.capture.recording import CannotRecord, Recording, Results, make_recording
from velodrome.step.capture.rehearsal import Kept, PythonSide, difference
from velodrome.step.capture.static_batch import StaticBatch, flatten
from velodrome.step.capture.steps import without_kept_casts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from velodrome.step.capture.context import CaptureContext
    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.eager import Outcome

__all__ = ["CapturedEvaluation"]

_TIMES_BEFORE = 8
"""batches of one shape that are evaluated eagerly first: a recording costs as much as some hundred of them save"""
_MAX_RECORDINGS = 4


class CapturedEvaluation:
    """Runs evaluation batches: a shape that has come often enough by replays, all others through the engine.

    Averaged weights lie elsewhere than those that are trained: each has its recording.

    Args:
        forward: of the eager engine.
        modules: the model, and the loss where that is a module.
        recorder: of the device.
        context: of the trainer.
    """

    def __init__(
        self,
        forward: Callable[[Any], Outcome],
        modules: Sequence[nn.Module],
        recorder: Recorder,
        context: CaptureContext,
    ) -> None:
        self.reason = ""
        """why nothing is recorded any more"""
        self._forward = forward
        self._modules = modules
        self._recorder = recorder
        self._context = context
        self._recordings: list[tuple[Any, Recording]] = []
        self._layout: Any = None
        self._last: StaticBatch | None = None
        self._times = 0

    def look_again(self) -> None:
        """A loop begins: weights may lie elsewhere now."""
        self._layout = None

    def forget(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()
        self._last = None

    def forward(self, batch: Any) -> Outcome:
        """Return the outcome of a batch; its numbers are there at once, as far as the device is asked."""
        flat = None if self.reason else flatten(batch)
        if flat is None:
            return self._forward(batch)
        if self._layout is None:
            self._layout = self._read_layout()
        tensors, nesting = flat
        for layout, recording in self._recordings:
            if recording.static.fits(tensors, nesting) and layout == self._layout:
                recording.static.fill(tensors)
                outcome = recording.outcome(tensors)
                recording.replay()
                recording.advance()
                return outcome
        if self._last is None or not self._last.fits(tensors, nesting):
            if self._last is None or self._last.tensors[0].shape[:1] < tensors[0].shape[:1]:  # not the odd last batch
                self._last, self._times = StaticBatch(batch, tensors, nesting), 0
            return self._forward(batch)
        self._times += 1
        if self._times >= _TIMES_BEFORE and len(self._recordings) < _MAX_RECORDINGS:
            self._times = 0
            self._record(StaticBatch(batch, tensors, nesting))
        return self._forward(batch)

    def _read_layout(self) -> Any:
        tensors = [tensor for each in self._modules for tensor in (*each.parameters(), *each.buffers())]
        return layout_of(tensors, self._modules)

    def _record(self, static: StaticBatch) -> None:
        reason = reason_against_modules(self._modules, self._context.precision)
        try:
            if reason:
                raise CannotRecord(reason)
            self._recordings.append((self._layout, self._try(static)))
        except CannotRecord as found:
            self.reason = str(found)
        except Exception as error:  # whatever the device, a library or the model raises: evaluation goes on without
            self.reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        if self.reason:
            self.forget()
            self._context.say(f"engine: evaluation is eager instead of captured: {self.reason}.")

    def _try(self, static: StaticBatch) -> Recording:
        """Record a forward pass and compare a replay with the engine; nothing of that counts.

        Raises:
            CannotRecord: says why.
        """
        python = PythonSide(self._modules, self._context.device)
        buffers = {name: buffer for each in self._modules for name, buffer in each.named_buffers()}
        kept = Kept(buffers, self._context.device)
        try:
            results = self._run_watched(static, python)
            trusted = _numbers(results.loss, results.output)
            recording = make_recording(static, results, held=self._context.held)
            kept.put_back()
            recording.replay = self._recorder.record(lambda: recording.write(self._run(static.batch)))
            recording.replay()
            outcome = recording.outcome(static.tensors)
            replayed = _numbers(outcome.loss, outcome.output)
        finally:
            kept.put_back()
            python.put_back()
        recording.rewind()
        trusted = {name: trusted[name] for name in replayed}
        start = {name: torch.zeros_like(value) for name, value in trusted.items()}
        differs, _ = difference(replayed, trusted, start)
        if differs:
            raise CannotRecord(f"a replay does not agree with the eager engine: {differs}")
        return recording

    def _run_watched(self, static: StaticBatch, python: PythonSide) -> Results:
        found: list[Results] = []
        with self._recorder.noting_waits() as waits:
            self._recorder.on_side(lambda: found.append(self._run(static.batch)))
        changed = python.put_back()
        if waits:
            raise CannotRecord(f"a forward pass waits for the device ({waits[0]})")
        if changed:
            raise CannotRecord(changed.replace("a step", "a forward pass"))
        return found[0]

    def _run(self, batch: Any) -> Results:
        with without_kept_casts():
            outcome = self._forward(batch)
        return Results(loss=outcome.loss, items=outcome.items, output=outcome.output, target=outcome.target, norms={})


def _numbers(loss: Tensor, output: Any) -> dict[str, Tensor]:
    return {"loss": loss.clone(), **({"output": output.clone()} if isinstance(output, Tensor) else {})}
