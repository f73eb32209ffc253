"""The captured engine: a whole step (forward, loss, backward, clipping, update) recorded once and replayed as one call.

```text
the first 3 steps of a run      eager, real ones: what an optimizer makes lazily is made, what a library loads is loaded
then, once a shape of batch     keep everything that a step changes
                                    one step with the eager engine that is watched: does it wait, draw from Python, assign attributes?
                                    3 steps with the eager engine; put everything back
                                    record a step; replay it 3 times; compare; put everything back
                                a difference, a wait, an error: the eager engine from here on, and a line that says why
every step                      copy the batch in, bring the learning rate up to date, replay
a batch of another shape        eager, with the same weights, state and learning rates
```

What a replay reads and writes lies where it was when it was recorded. So before each step it is made sure that the optimizer's
options and its state are the ones of the recording, and before each loop that weights, buffers, modes and hooks are; what has
changed is recorded anew. The optimizer's state, the weights and the generator are those of the eager engine in every way: a
checkpoint made between two replays is an ordinary one.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "Whole-network capture".
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.step.capture.evaluation import CapturedEvaluation
from velodrome.step.capture.premises import Premises
from velodrome.step.capture.recording import CannotRecord, Recording
from velodrome.step.capture.rehearsal import Kept, PythonSide
from velodrome.step.capture.replays import Replays
from velodrome.step.capture.shelf import Shelf
from velodrome.step.capture.static_batch import StaticBatch, flatten
from velodrome.step.capture.steps import NUM_COMPARED, StepRecorder
from velodrome.step.phases import NoPhases
from velodrome.step.whole_steps import NO_WHOLE_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from velodrome.step.capture.context import CaptureContext
    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.eager import EagerEngine, Outcome
    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.phases import Place
    from velodrome.step.updates import Updates

__all__ = ["CapturedEngine", "CapturedPhases"]

NUM_WARM_UPS = 3
"""real eager steps at the start of a run"""


class CapturedEngine:
    """Runs the batches of a training loop that it drives by replaying recorded steps; everything else through another engine.

    Args:
        engine: eager.
        updates: of the only optimizer.
        recorder: of the device.
        context: of the trainer.
    Cost: memory for what recorded steps work on, for each shape of batch; `StepRecorder`'s, once.
    """

    def __init__(self, engine: EagerEngine, updates: Updates, recorder: Recorder, context: CaptureContext) -> None:
        self.model, self.loss = engine.model, engine.loss
        self.line, self.part_sizes = engine.line, engine.part_sizes
        self.reason = ""
        """why nothing is recorded any more"""
        self._engine = engine
        self._updates = updates
        self._context = context
        function = None if engine.loss is None else engine.loss.function
        self._modules = [engine.model, *([function] if isinstance(function, nn.Module) else [])]
        self._premises = Premises(self._modules, updates, context)
        self._replays = Replays(updates, context.device)
        self._steps = StepRecorder(
            engine.forward, self._modules, updates, self._replays, self._premises, recorder, context
        )
        self._evaluation = CapturedEvaluation(engine.forward, self._modules, recorder, context)
        self._shelf = Shelf()
        self._is_driven = False
        self._must_look = True
        self._eager: Outcome | None = None
        self._has_said = False

    # -- what a trainer calls ---------------------------------------------------------------------------------------

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Record and replay inside, where that can be done."""
        if self.reason or self._gives_up(self._premises.reason):
            yield
            return
        self._updates.whole_steps = self._replays
        self._is_driven, self._must_look = True, True
        try:
            yield
        finally:
            self._let_go()

    def forward(self, batch: Any) -> Outcome:
        """Return the outcome of a batch; in a driven loop over training batches the numbers are there after `step`."""
        if not self._is_driven:
            return self._engine.forward(batch)
        if not torch.is_grad_enabled():
            return self._evaluation.forward(batch)
        self._let_graph_go()
        flat = self._flatten(batch)
        recording = None if flat is None else self._find(batch, *flat)
        if flat is None or recording is None:
            self._eager = outcome = self._engine.forward(batch)
            return outcome
        self._replays.stage(recording)
        return recording.outcome(flat[0])

    def forward_first(self, first_batch: FirstBatch, batch: Any, role: str) -> Outcome:
        """Check the first batch of a source, then do with it what is done with any other."""
        if not self._is_driven or not torch.is_grad_enabled():
            return self._engine.forward_first(first_batch, batch, role)
        self._let_graph_go()
        if self._is_warming_up:
            self._eager = outcome = self._engine.forward_first(first_batch, batch, role)
            return outcome
        # The step itself may be a replay, which shows nothing: a forward pass for the checks alone, and all as before.
        kept = Kept(self._premises.state, self._context.device)
        python = PythonSide(self._modules, self._context.device)
        outcome = self._engine.forward_first(first_batch, batch, role)
        first_batch.check_loss(outcome.loss)
        del outcome
        kept.put_back()
        python.put_back()
        return self.forward(batch)

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch, without its target."""
        return self._engine.predict(batch)

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `forward` calls: for `Trainer.explain`."""
        if self.reason:
            return self._engine.calls()
        what = f"from step {NUM_WARM_UPS + 1} on, in fit: replay the lines of a step that follow, recorded as one"
        return [(what, self._replays.make_step), *self._engine.calls()]

    def look_again(self) -> None:
        """A loop begins: whatever was done in between, compare everything before the next step."""
        self._must_look = True
        self._evaluation.look_again()

    # -- a batch ----------------------------------------------------------------------------------------------------

    @property
    def _is_warming_up(self) -> bool:
        return self._context.steps_done() < NUM_WARM_UPS

    def _flatten(self, batch: Any) -> tuple[list[Tensor], Hashable] | None:
        """Return the tensors of a batch whose step may be a replay, and their nesting; None where the step is to be eager."""
        if self._must_look or self._context.is_watched:
            self._must_look = False
            if self._gives_up(self._premises.reason):
                return None
            if self._premises.layout_has_changed():
                self._shelf.clear()  # before warm-up is over state is still being made: nothing was recorded then
        if self._is_warming_up:
            return None
        flat = flatten(batch)
        if flat is None:
            self._gives_up("a batch holds something besides tensors, tuples, lists and dicts")
        return flat

    def _find(self, batch: Any, tensors: list[Tensor], nesting: Hashable) -> Recording | None:
        """Return the recording of steps with such a batch, with the batch copied in; None where the step is to be eager."""
        if self._shelf.recordings and self._premises.options_have_changed():
            self._shelf.clear()  # the next step is recorded anew; too often, and there will be no more
            if self._gives_up(self._premises.count_change()):
                return None
        found = self._shelf.find(tensors, nesting)
        if found is not None or not self._shelf.wants(batch, tensors, nesting):
            return found
        return self._record(StaticBatch(batch, tensors, nesting))

    def _record(self, static: StaticBatch) -> Recording | None:
        try:
            recording, largest = self._steps.record(static)
        except CannotRecord as reason:
            self._gives_up(str(reason))
            return None
        except Exception as error:  # whatever the device, a library or the model raises: training goes on without
            first = next(iter(str(error).strip().splitlines()), "")
            self._gives_up(f"{type(error).__name__} while a step was recorded: {first}")
            return None
        self._shelf.recordings.append(recording)
        if not self._has_said:
            self._has_said = True
            bits = "bit for bit" if not largest else f"within {largest:.1g} of the way that they went"
            self._context.say(
                f"engine: captured: from step {self._context.steps_done() + 1:,} on a step is one replay. {NUM_COMPARED} steps were made "
                f"both ways and agree {bits}."
            )
        return recording

    def _let_graph_go(self) -> None:
        """Cut what the eager step before gave from its graph.

        Whoever holds the outcome holds its graph, and with it the nodes that add to the gradients, which belong to the stream that
        they were made on: a recording, on another stream, would use them again.
        """
        outcome, self._eager = self._eager, None
        if outcome is not None:
            outcome.loss = outcome.loss.detach()
            if isinstance(outcome.output, Tensor):
                outcome.output = outcome.output.detach()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _gives_up(self, reason: str) -> bool:
        """Go on with the eager engine if there is a reason to, and say so; return whether there is."""
        if not reason:
            return False
        self.reason = reason
        self.line = f"engine: eager instead of captured: {reason}"
        self._context.warn(f"{self.line}.")
        if self._is_driven:
            self._let_go()
            self._updates.prepare()
        return True

    def _let_go(self) -> None:
        self._is_driven = False
        self._updates.whole_steps = NO_WHOLE_STEPS
        self._shelf.clear()
        self._evaluation.forget()
        self._replays.forget()
        self._premises.forget()
        self._let_graph_go()


class CapturedPhases(NoPhases):
    """Tells a captured engine when a loop begins."""

    def __init__(self, engine: CapturedEngine) -> None:
        self._engine = engine

    def watch(self, place: Place, micro_batch: Callable[[], int | None]) -> Place:
        """Take note that a loop begins."""
        del micro_batch
        self._engine.look_again()
        return place
