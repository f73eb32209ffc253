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

from velodrome.step.bare import BareStep
from velodrome.step.capture.device_rates import DeviceRates, RatedStep
from velodrome.step.capture.evaluation import CapturedEvaluation
from velodrome.step.capture.limits import layout_of, reason_against
from velodrome.step.capture.recording import CannotRecord, Recording, Results, make_recording
from velodrome.step.capture.rehearsal import Kept, PythonSide, difference, named_state
from velodrome.step.capture.static_batch import StaticBatch, flatten
from velodrome.step.compiled import NotCompiled
from velodrome.step.eager import EagerEngine, Outcome
from velodrome.step.updates import Updates

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.precision import Precision

    Place = Callable[[Any], tuple[Any, int]]

__all__ = ["CapturedEngine", "CapturedPhases"]

NUM_WARM_UPS = 3
"""real eager steps at the start of a run"""
NUM_COMPARED = 3
"""steps made both ways before a recording is trusted"""
_MAX_RECORDINGS = 4  # shapes of batches
_MAX_CHANGES = 3  # of the optimizer's options, or of its state, before recording is given up
_TIMES_IN_A_ROW = 3  # that another shape of batch comes before it is worth a recording of its own


class CapturedEngine(EagerEngine):
    """Runs the batches of a training loop that it drives by replaying recorded steps; everything else through another engine.

    Args:
        engine: eager.
        updates: of the only optimizer.
        precision: of the forward passes.
        recorder: of the device.
        device: the model's.
        say: shows a line to people.
        warn: shows one that must be seen.
        steps_done: how many updates the run has made, those before it was interrupted included.
        keeps_outputs: metrics want what the model returns.
        is_watched: callbacks are told of each step, and may change anything: all of it is compared before each step, not only
            before each loop.
    Cost: memory for a second copy of weights, buffers and optimizer state while a step is recorded (and of a few recorded ones
        always); about ten steps' time, once.
    """

    def __init__(
        self,
        engine: EagerEngine,
        *,
        updates: Updates,
        precision: Precision,
        recorder: Recorder,
        device: torch.device,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        steps_done: Callable[[], int],
        keeps_outputs: bool,
        is_watched: bool,
    ) -> None:
        super().__init__(engine.model, loss=engine.loss, step_fn=engine.step_fn)
        self.reason = ""
        """why nothing is recorded any more"""
        self._engine = engine
        self._updates = updates
        self._precision = precision
        self._recorder = recorder
        self._device = device
        self._say = say
        self._warn = warn
        self._steps_done = steps_done
        self._keeps_outputs = keeps_outputs
        self._is_watched = is_watched
        function = None if engine.loss is None else engine.loss.function
        self._modules = [engine.model, *([function] if isinstance(function, nn.Module) else [])]
        self._rates = DeviceRates(updates.optimizer, device)
        self._rated: RatedStep | None = None
        self._evaluation = CapturedEvaluation(
            engine, self._modules, precision, recorder, device=device, say=say, keeps_outputs=keeps_outputs
        )
        self._is_driven = False
        self._must_look = True
        self._recordings: list[Recording] = []
        self._layout: Any = None
        self._options: list[dict[str, Any]] = []
        self._state: Any = None
        self._num_changes = 0
        self._in_a_row = 0
        self._other: StaticBatch | None = None
        self._tensors: list[Tensor] = []
        self._staged: Recording | None = None
        self._made: Recording | None = None
        self._eager: Outcome | None = None
        self._has_said = False

    # -- what a trainer calls ---------------------------------------------------------------------------------------

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Record and replay inside, where that can be done."""
        if self.reason or self._gives_up(self._known_reason()):
            yield
            return
        updates: Any = self._updates  # Any: its methods are exchanged
        updates.backward, updates.update = self._backward, self._update
        updates.make_step = self._make_step
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
        recording = self._find(batch)
        if recording is None:
            self._eager = outcome = self._engine.forward(batch)
            return outcome
        self._staged = recording
        return recording.outcome(self._tensors)

    def forward_first(self, first_batch: FirstBatch, batch: Any, role: str) -> Outcome:
        """Check the first batch of a source, then do with it what is done with any other."""
        if not self._is_driven or not torch.is_grad_enabled():
            return self._engine.forward_first(first_batch, batch, role)
        if self._is_warming_up:
            self._eager = outcome = self._engine.forward_first(first_batch, batch, role)
            return outcome
        # The step itself may be a replay, which shows nothing: a forward pass for the checks alone, and all as before.
        kept = Kept(self._changed_by_a_step(), self._device)
        outcome = self._engine.forward_first(first_batch, batch, role)
        first_batch.check_loss(outcome.loss)
        del outcome
        kept.put_back()
        return self.forward(batch)

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch, without its target."""
        return self._engine.predict(batch)

    def expect_targets(self, targets: Any) -> None:
        """Tell the engine inside."""
        self._engine.expect_targets(targets)

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `forward` calls: for `Trainer.explain`."""
        if self.reason:
            return self._engine.calls()
        what = f"from step {NUM_WARM_UPS + 1} on, in fit: replay the lines of a step that follow, recorded as one"
        return [(what, self._backward), *self._engine.calls()]

    def look_again(self) -> None:
        """A loop begins: whatever was done in between, compare everything before the next step."""
        self._must_look = True
        self._evaluation.look_again()

    # -- a step -----------------------------------------------------------------------------------------------------

    @property
    def _is_warming_up(self) -> bool:
        return self._steps_done() < NUM_WARM_UPS

    def _find(self, batch: Any) -> Recording | None:
        """Return the recording of steps with such a batch, with the batch copied in; None where the step is to be eager."""
        if self._must_look or self._is_watched:
            self._must_look = False
            if self._gives_up(self._known_reason()):
                return None
            self._compare_layout()
        if self._is_warming_up:
            return None
        flat = flatten(batch)
        if flat is None:
            self._gives_up("a batch holds something besides tensors, tuples, lists and dicts")
            return None
        tensors, nesting = flat
        self._tensors = tensors
        if self._recordings and self._options_have_changed():
            self._forget("the optimizer's options or state change again and again")
            if self.reason:
                return None
        for recording in self._recordings:
            if recording.static.fits(tensors, nesting):
                recording.static.fill(tensors)
                self._in_a_row = 0
                return recording
        return self._record(batch, tensors, nesting) if self._is_worth_it(tensors, nesting, batch) else None

    def _is_worth_it(self, tensors: list[Tensor], nesting: Hashable, batch: Any) -> bool:
        """Return whether to record steps with batches of this shape: the first shape, and others that come in a row; not the odd last one."""
        if not self._recordings:
            return True
        if len(self._recordings) >= _MAX_RECORDINGS:
            return False
        if self._other is None or not self._other.fits(tensors, nesting):
            self._other, self._in_a_row = StaticBatch(batch, tensors, nesting), 0
        self._in_a_row += 1
        return self._in_a_row >= _TIMES_IN_A_ROW

    def _backward(self, loss: Tensor, items: Tensor | float) -> None:
        """Make the whole step with a replay; or the backward pass of one that is eager."""
        recording, self._staged = self._staged, None
        if recording is None or loss is not recording.outcome_loss:
            Updates.backward(self._updates, loss, items)
            self._let_graph_go()
            return
        self._rates.refresh()
        recording.replay()
        self._updates.guard.note_loss(recording.loss.peek())
        self._updates.micro_batches = 1
        self._made = recording

    def _update(self) -> None:
        """Take note of the update that a replay has made; or make one."""
        recording, self._made = self._made, None
        if recording is None:
            Updates.update(self._updates)
            return
        self._updates.count_update({name: ring.peek() for name, ring in recording.norms.items()})
        recording.advance()

    def _make_step(self, optimizer: torch.optim.Optimizer) -> RatedStep:
        """Return what updates eagerly, with the arithmetic of a replay."""
        self._rated = RatedStep(optimizer, self._rates)
        return self._rated

    def _let_graph_go(self) -> None:
        """Cut what an eager step gave from its graph.

        The loop's `outcome` lives until the next one is there. Its graph holds the nodes that add to the gradients, which belong
        to the stream that they were made on: a recording, on another stream, would use them again.
        """
        outcome, self._eager = self._eager, None
        if outcome is not None:
            outcome.loss = outcome.loss.detach()
            if isinstance(outcome.output, Tensor):
                outcome.output = outcome.output.detach()

    # -- is it still what was recorded? -----------------------------------------------------------------------------

    def _known_reason(self) -> str:
        return reason_against(self._modules, self._updates, self._precision, self._device)

    def _changed_by_a_step(self) -> dict[str, Tensor]:
        return named_state(self._modules, self._updates.optimizer)

    def _compare_layout(self) -> None:
        layout = layout_of(self._changed_by_a_step().values(), self._modules)
        if layout != self._layout:
            self._recordings.clear()  # before warm-up is over state is still being made: nothing was recorded then
            self._layout = layout

    def _options_have_changed(self) -> bool:
        optimizer = self._updates.optimizer
        if optimizer.state is not self._state or len(optimizer.param_groups) != len(self._options):
            return True
        for group, options in zip(optimizer.param_groups, self._options, strict=True):
            for name, value in options.items():
                now = group[name]
                if now is not value and now != value:
                    return True
        return False

    def _read_options(self) -> None:
        """Take note of what is recorded with a step: all options but the learning rate, as numbers."""
        optimizer = self._updates.optimizer
        self._state = optimizer.state
        skipped = ("params", "lr", "initial_lr", "capturable", "param_names")
        self._options = [
            {name: value for name, value in group.items() if name not in skipped} for group in optimizer.param_groups
        ]

    def _forget(self, why: str) -> None:
        """Drop all recordings: the next step is recorded anew; too often, and there will be no more."""
        self._recordings.clear()
        self._layout = layout_of(self._changed_by_a_step().values(), self._modules)
        self._num_changes += 1
        if self._num_changes > _MAX_CHANGES:
            self._gives_up(why)

    # -- recording --------------------------------------------------------------------------------------------------

    def _record(self, batch: Any, tensors: list[Tensor], nesting: Hashable) -> Recording | None:
        self._layout = layout_of(self._changed_by_a_step().values(), self._modules)
        self._read_options()
        try:
            recording, largest = self._try_steps(StaticBatch(batch, tensors, nesting))
        except CannotRecord as reason:
            self._gives_up(str(reason))
            return None
        except Exception as error:  # whatever the device, a library or the model raises: training goes on without
            first = next(iter(str(error).strip().splitlines()), "")
            self._gives_up(f"{type(error).__name__} while a step was recorded: {first}")
            return None
        self._recordings.append(recording)
        if not self._has_said:
            self._has_said = True
            bits = "bit for bit" if not largest else f"within {largest:.1g} of the way that they went"
            self._say(
                f"engine: captured: from step {self._steps_done() + 1:,} on a step is one replay. {NUM_COMPARED} steps were made both ways and "
                f"agree {bits}."
            )
        return recording

    def _try_steps(self, static: StaticBatch) -> tuple[Recording, float]:
        """Record a step and compare replays of it with the eager engine; nothing of that counts.

        Raises:
            CannotRecord: says why.
        """
        guard, state = self._updates.guard, self._changed_by_a_step()
        flag = getattr(guard, "flag", None)
        kept = Kept({**state, **({"the guard's flag": flag} if isinstance(flag, Tensor) else {})}, self._device)
        python = PythonSide(self._modules, self._device)
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
        self._rates.refresh()
        with self._recorder.noting_waits() as waits:
            self._recorder.on_side(lambda: found.append(self._step(static.batch)))
        changed = python.put_back()
        if waits:
            raise CannotRecord(f"a step waits for the device ({waits[0]})")
        if changed:
            raise CannotRecord(changed)
        return make_recording(static, found[0], keeps_outputs=self._keeps_outputs)

    def _step(self, batch: Any) -> Results:
        """Make a whole step on the device."""
        has_cache = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(
            False
        )  # a cast of the weights that is kept would not be made again by a replay
        try:
            outcome = self._engine.forward(batch)
            items = 1.0 if outcome.items is None else outcome.items
            loss, norms = self._updates.run_on_device(outcome.loss, items)
        finally:
            torch.set_autocast_cache_enabled(has_cache)
        output = outcome.output.detach() if isinstance(outcome.output, Tensor) else outcome.output
        return Results(loss=loss, items=outcome.items, output=output, target=outcome.target, norms=norms)

    def _record_work(self, work: Callable[[], None]) -> Callable[[], None]:
        rated = self._rated
        if rated is None:
            raise CannotRecord("the loop was not told that it trains")
        rated.is_recorded = True
        try:
            return self._recorder.record(work)
        finally:
            rated.is_recorded = False

    # -- the end ----------------------------------------------------------------------------------------------------

    def _gives_up(self, reason: str) -> bool:
        """Go on with the eager engine if there is a reason to, and say so; return whether there is."""
        if not reason:
            return False
        self.reason = reason
        self._warn(f"engine: eager instead of captured: {reason}.")
        if self._is_driven:
            self._let_go()
            self._updates.prepare()
        return True

    def _let_go(self) -> None:
        self._is_driven = False
        updates: Any = self._updates
        for name in ("backward", "update"):
            updates.__dict__.pop(name, None)
        updates.make_step = BareStep
        self._recordings.clear()
        self._evaluation.forget()
        self._staged = self._made = self._eager = None
        self._layout = None


class CapturedPhases(NotCompiled):
    """Tells a captured engine when a loop begins."""

    def __init__(self, engine: CapturedEngine) -> None:
        self._engine = engine

    def watch(self, place: Place, micro_batch: Callable[[], int | None]) -> Place:
        """Take note that a loop begins."""
        del micro_batch
        self._engine.look_again()
        return place
