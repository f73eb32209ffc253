"""The end of a run: the last save, closed records, callbacks that are told; also when an error passes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.errors import NumericsError
from velodrome.loop.progress import StopReason
from velodrome.nonfinite.checks import check_finite_weights
from velodrome.report.findings import find_bottlenecks
from velodrome.run.phase import NO_PHASE
from velodrome.run.rescue import save_aside
from velodrome.step.freed_memory import give_back_freed_memory

if TYPE_CHECKING:
    from velodrome.run.run import Run

__all__ = ["end_run"]


def end_run(run: Run, reason: StopReason) -> None:
    """Save the last weights and close the records.

    Args:
        run: under way.
        reason: `LEFT` where the user's loop was left, by a `break` or by an error: then the run has noted which.
    Raises:
        BaseException: what ended the run, unless it is on its way already.
    """
    if run.going_on.is_over:
        run.going_on.is_over, run.is_under_way, run.stop_reason = False, False, reason
        run.clock.end()
        run.files.leave()
        give_back_freed_memory()
        return
    run.tick()
    run.phases.forget_left()
    run.is_under_way = False
    run.windows.discard()  # the window of a loop that was left together with the run
    error = noted = run.error if reason is StopReason.LEFT else None
    if run.leaving is not None and run.interruption.has_left:
        reason, error = run.leaving.reason, None
    elif error is None:
        error = _save_last(run, reason)
    give_back_freed_memory()
    if error is None:
        _finish(run, reason)
        return
    _fail(run, error)
    if reason is not StopReason.LEFT or (error is not noted and not isinstance(error, NumericsError)):
        raise error


def _save_last(run: Run, reason: StopReason) -> BaseException | None:
    """Write the last checkpoint; return what failed, of a callback that is told of it, say: everything is closed all the same."""
    try:
        run.files.checkpoints.wait()
        run.saves.end()
        if run.progress.steps_done and not run.files.checkpoints.can_save(run.progress):
            check_finite_weights(run.model.named_parameters(), step=run.progress.steps_done)
        # A loop that was left, by `break` or by an error of the user's own, was perhaps left by this process only.
        run.saves.save(together=reason is not StopReason.LEFT)
    except BaseException as failure:
        return failure
    return None


def _finish(run: Run, reason: StopReason) -> None:
    run.stop_reason = reason
    if run.averaging.describe() and not run.averaging.num_averaged:
        run.notices.warn_all(
            "The run ended before its weights were averaged once. Give a smaller start, or a longer run."
        )
    run.notices.of_whole_pace(run.consensus.pace)
    run.watchers.end()
    bill = run.clock.settle()
    run.files.record_bill(bill, findings=find_bottlenecks(bill, run.watchers.unsaid), waits=run.watchers.said)
    try:
        run.files.finish(reason, run.progress, run.keeping.best)
        failures = _tell_each(run, "on_fit_end")
    finally:
        run.clock.end()  # closing the records, drawing curves and the last callbacks are part of what a run takes
    for failure in failures:
        raise failure


def _fail(run: Run, error: BaseException) -> None:
    run.phase = NO_PHASE
    run.stop_reason = StopReason.INTERRUPTED if isinstance(error, KeyboardInterrupt) else StopReason.FAILED
    failures = _tell_each(run, "on_exception", error)
    save_aside(run, error)
    run.watchers.end()
    run.files.record_bill(run.clock.settle())
    run.files.fail(run.stop_reason, error, run.progress)
    failures += _tell_each(run, "on_fit_end")
    run.clock.end()
    for failure in failures:  # the first error is the one that matters
        error.add_note(f"Then a callback raised {type(failure).__name__}: {failure}")


def _tell_each(run: Run, event: str, *details: Any) -> list[Exception]:
    """Call every callback at the end of a run, whatever those before it do: each closes what it opened. Return their errors."""
    failures: list[Exception] = []
    for call in run.events[event]:
        try:
            call(run.trainer, *details)
        except Exception as failure:
            failures.append(failure)
    return failures
