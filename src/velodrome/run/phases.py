"""The loops over training and evaluation batches: each is a phase that is entered, left, and brought to its end.

```text
entered     sums of its own; first-batch checks, precision and deterministic algorithms hold
left        by `break`: the iterator cannot tell that from an error, so the phase is finished when the run goes on
finished    windows that are open are closed, other processes followed, means read, values put into the epoch's row
```
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError
from velodrome.loop.host import LeftAtOnce, length_of
from velodrome.metrics.means import MAX_NAMES
from velodrome.metrics.merging import ALONE
from velodrome.record.clock import billed
from velodrome.record.progress import NoProgress
from velodrome.resume.run_state import callback_states
from velodrome.run.averaged_statistics import average_epoch
from velodrome.run.phase import NO_PHASE, Phase
from velodrome.seeding import get_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from velodrome.metrics.means import Merge
    from velodrome.record.progress import ProgressView
    from velodrome.run.run import Run

__all__ = ["Phases"]

_UNRECORDED = ("eval", "predict")
_TAKEN = ("train", "lr", *_UNRECORDED)


class Phases:
    """Keeps `phase` and `train_phase` of a run: the phase under way, and the one of the epoch's training.

    Args:
        run: whose phases they are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.clock = run.clock
        self._finish_left: Callable[[], None] | None = None
        self._claimed: dict[str, int | None] = {}
        self.is_in_loop = False
        """this process has training batches left"""

    def new(self, name: str, display: ProgressView) -> Phase:
        """Return a phase with sums of its own."""
        run = self._run
        return Phase(
            name,
            metrics=run.metrics,
            device=run.trainer.device,
            display=display,
            others=ALONE if name == "predict" else run.world,  # every process predicts everything, and may do so alone
            outputs_are_reused=run.engine_phases.reuses_memory,
        )

    @contextmanager
    def training(self, source: Any) -> Iterator[Phase]:
        """Collect what is logged and measured inside as the training phase."""
        run = self._run
        self.finish_left()
        if run.phase is not NO_PHASE:
            raise ArgumentError(
                f"epoch.train() was started inside of the {run.phase.name!r} phase. Finish that loop first."
            )
        if "epoch" not in run.row:
            raise ArgumentError(
                "epoch.train() was called after its epoch was over. Call it inside of the loop over trainer.epochs(...)."
            )
        run.position.enter_loop(source)
        self.is_in_loop = True
        inside = self._inside(run.train_phase, source, self._finish_training)
        with self.clock.looping(), inside, run.windows.training():
            yield run.train_phase
            self._close_windows()
            self._follow_others()
            if run.leaving is not None and not run.is_alone:
                run.leave()  # the others are in the middle of their data, and leave there
                raise LeftAtOnce

    def claim_name(self, name: str, *, only_within: bool = False) -> bool:
        """Take a name for the values of an evaluation; return whether it is made within the training loop.

        Args:
            name: its values are recorded as `<name>/...`.
            only_within: it cannot be recorded anywhere else.
        Raises:
            ArgumentError: the name is taken, or no training loop is under way and one has to be.
        """
        run = self._run
        within = run.phase.is_training
        now = run.progress.micro_batches_done if within else None
        is_claimed = name in self._claimed and self._claimed[name] == now
        if not name or name in _TAKEN or is_claimed:
            raise ArgumentError(
                f"evaluate(name={name!r}) would mix with {'the evaluation before' if is_claimed else 'other values'}: its values are recorded "
                f'as {name}/... . Give each evaluation of an epoch a name of its own, such as "test".'
            )
        if only_within and not within:
            raise ArgumentError(
                f"evaluate(name={name!r}) was called outside of the training loop, where there is no step whose row could have its values. "
                f"Call it in on_step_end, leave the name out, or use epoch.evaluate(data, name={name!r})."
            )
        self._claimed[name] = now
        return within

    def forget_names(self) -> None:
        """Another epoch begins."""
        self._claimed.clear()

    @contextmanager
    def evaluation(self, name: str, source: Any) -> Iterator[Phase]:
        """Collect what is logged and measured inside under this name."""
        run = self._run
        self.finish_left()
        if run.phase is not NO_PHASE and not run.phase.is_training:
            raise ArgumentError(
                f"The evaluation {name!r} was started inside of the evaluation {run.phase.name!r}. Finish that loop first."
            )
        if run.phase is NO_PHASE:
            average_epoch(run)
            if name == "eval" and not run.is_under_way:
                run.world.broadcast_from_main(run.model)  # in a run all have the same weights; before it, who knows
        # Inside of the training phase, from a callback say, the bar goes on showing that one.
        phase = self.new(name, run.display if run.phase is NO_PHASE else NoProgress())
        place = None
        if run.phase.is_training and name not in _UNRECORDED:
            place = run.rows.coordinates("evaluation", run.row["epoch"])
        inside = self._inside(phase, source, partial(self.finish_evaluation, phase, place))
        with self.clock.spending("evaluation"), inside, run.windows.evaluating(), run.averaging.evaluating():
            yield phase

    @contextmanager
    def _inside(self, phase: Phase, source: Any, finish: Callable[[], None]) -> Iterator[None]:
        """Make the phase the one under way; finish it when its loop has come to its end."""
        run = self._run
        outer, run.phase = run.phase, phase
        columns = source.columns
        phase.enter(run.row.get("epoch", 0), run.budget.epochs, length_of(source), batches_are_new=columns is not None)
        try:
            with run.first_batch.of(source, columns), run.determinism.around(), run.precision.around(run.model):
                yield
        except GeneratorExit:
            # Leaving a `for` loop looks the same to its iterator whether a `break` or an error did it. So a phase that was
            # left is finished when the run goes on, which after an error it does not.
            self._finish_left = finish
            if outer.is_training:
                run.save_is_due = True  # the loop looks at it when the batch is over, and finishes this one
            raise
        except LeftAtOnce:
            raise
        except BaseException as error:
            if run.interruption.has_ended_workers(error):
                run.leave()
                raise LeftAtOnce from None
            run.note(error)
            raise
        finally:
            phase.leave()
            run.phase = outer
            run.engine_phases.leave_phase()
        try:
            finish()
        except BaseException as error:
            run.note(error)
            raise

    # -- left -------------------------------------------------------------------------------------------------------

    def finish_left(self) -> None:
        """Finish a phase whose loop was left by `break`; comes before anything that processes do together."""
        run = self._run
        finish, self._finish_left = self._finish_left, None
        if finish is not None:
            if run.saves.waits_for_batch and not run.is_alone:
                run.saves.save()  # others wait for this process; they are told that it is not where they are
            if finish == self._finish_training and (run.windows.open_ones or not run.is_alone):
                with run.windows.training():
                    self._close_windows()
                    self._follow_others()
            finish()

    def finish_left_within(self) -> None:
        """Finish an evaluation within the training loop that was left by `break`: its batch is over, so it was no error."""
        finish, self._finish_left = self._finish_left, None
        if finish is not None:
            finish()

    def settle_left(self) -> None:
        """Before the run is left: a training loop that the user left is finished as it would have been; an evaluation is run again later."""
        if self._finish_left != self._finish_training:
            self._finish_left = None
        self.finish_left()

    def forget_left(self) -> None:
        """A phase that was left together with its run is not finished."""
        self._finish_left = None

    # -- finished ---------------------------------------------------------------------------------------------------

    def _close_windows(self) -> None:
        """Make the update of a window that the data ended in: a short one is divided by what it has."""
        run = self._run
        outer, run.phase = run.phase, run.train_phase
        self.is_in_loop = False
        try:
            for updates in run.windows.open_ones:
                run.update(updates)
        finally:
            run.phase = outer

    def _follow_others(self) -> None:
        """Take part in the updates of processes whose data last longer, until nobody has any: weights stay the same everywhere."""
        run = self._run
        if run.is_alone:
            return
        outer, run.phase = run.phase, run.train_phase
        try:
            while run.leaving is None and run.take_part():
                pass
        finally:
            run.phase = outer

    @billed("logging")
    def _finish_training(self) -> None:
        """Put the means of the training phase into the epoch's row, and make the checkpoint that waited."""
        run, phase = self._run, self._run.train_phase
        run.windows.settle_blocking()
        run.nonfinite.read_flags()
        run.tick()
        self._read_blocking(phase, run.consensus.add_up)
        phase.told = run.world.gather((phase.batches_done, phase.is_whole))
        run.position.is_whole &= all(is_whole for _, is_whole in phase.told)
        run.world.broadcast_buffers(run.model)  # statistics of BatchNorm are those of each process's own batches
        if run.averaging.num_averaged and not run.is_alone:
            with run.averaging.applied():
                run.world.broadcast_buffers(run.model)
        run.rows.check_finite(phase.values)
        run.row.update({f"train/{name}": value for name, value in phase.values.items()})
        run.row["samples_per_s"] = run.progress.samples_in_epoch / max(1e-9, phase.seconds)
        run.position.leave_loop(get_random_state(run.trainer.device) if run.notes_random_states else None)
        run.saves.make_what_waits()

    def finish_evaluation(self, phase: Phase, place: dict[str, Any] | None) -> None:
        """Put the means of an evaluation into the epoch's row, and tell the callbacks.

        Args:
            phase: of the evaluation.
            place: where within the training loop it was begun, for a row of its own; None for one after the loop.
        """
        run = self._run
        self._read_blocking(phase, phase.others.merge_sums)
        named = {f"{phase.name}/{key}": value for key, value in phase.values.items()}
        if "epoch" in run.row and phase.name not in _UNRECORDED:
            run.row.update(named)
            if place is not None:
                run.tick()
                run.files.write({**place, "seconds": run.progress.seconds, **named})
            elif run.events["on_evaluate_end"] and run.position.callbacks is None and run.notes_random_states:
                run.position.callbacks = deepcopy(callback_states(run))  # told again when the run goes on from here
            run.tell("on_evaluate_end", named)

    def _read_blocking(self, phase: Phase, merge: Merge) -> None:
        """Set the phase's values, and say what is missing there."""
        phase.finish_blocking(merge)
        if phase.num_dropped:
            self._run.notices.warn_all(
                f"More than {MAX_NAMES} different names were logged while {phase.name!r} went on; the others were dropped. "
                f"Put the changing part into the value, not into the name."
            )
