"""The beginning of a run: what is checked, seeded, loaded, opened and told before the first epoch."""

from __future__ import annotations

from dataclasses import asdict, replace
from time import perf_counter
from typing import TYPE_CHECKING

from velodrome.callbacks.base import listeners
from velodrome.errors import ArgumentError
from velodrome.loop.progress import StopReason
from velodrome.run.checkpoint_files import check_model
from velodrome.run.room import estimate_room
from velodrome.seeding import seed_everything

if TYPE_CHECKING:
    from velodrome.loop.progress import Budget
    from velodrome.run.run import Run

__all__ = ["begin_run"]

_STOPPED = (StopReason.INTERRUPTED, StopReason.TERMINATED, StopReason.DEADLINE)


def begin_run(run: Run, budget: Budget) -> Budget:
    """Seed, open the records, and tell the callbacks; return the limits that are left to the loop.

    Raises:
        ArgumentError: a run is under way, or there is no optimizer.
    """
    if run.is_under_way:
        raise ArgumentError(
            "A run of this trainer is under way already. Finish its loop first, or make another Trainer."
        )
    if not run.windows:
        raise ArgumentError(
            'This trainer has no optimizer: it only evaluates and predicts. Give optimizer="adam", say.'
        )
    run.is_under_way = True
    was_stopped = run.stop_reason in _STOPPED
    run.stop_requested = run.stop_reason = run.error = run.consensus.wanted_stop = run.leaving = None
    run.budget = budget
    run.schedule_lengths.forget()
    run.clock.begin()
    run.events = run.clock.timed_listeners(listeners(run.callbacks))
    try:
        if not run.progress.steps_done:
            if run.seed is not None:
                seed_everything(run.seed)
            run.consensus.begin()
        run.windows.discard()  # what a computation before the run left there is not this run's gradient
        _ = run.settings
        run.going_on.load(budget)
        run.started_at = perf_counter() - run.progress.seconds
        run.keeping.count_from(run.progress)
        run.averaging.begin(epochs=budget.epochs, steps=budget.steps)
        if run.files.path is not None:
            check_model(run.model)
        run.notices.of_parameters(run.model, run.windows)
        run.notices.watch_gradients(run.model, run.windows)
        if run.going_on.is_over:
            run.going_on.look_back()
            return budget
        if was_stopped and run.position.stage == "open":
            run.notices.warn_all(
                f"Epoch {run.progress.epoch} was stopped in its middle, and this trainer begins it anew, on the weights as they are. To go on "
                f'at the very next sample make a new Trainer with resume="auto" and the same run_dir.'
            )
        run.interruption.begin()
        run.events["on_step_end"] += run.interruption.listeners()
        limits = {name: value for name, value in asdict(budget).items() if value is not None}
        run.files.start(
            {"device": str(run.trainer.device), "seed": run.seed, "processes": run.world.size, "budget": limits}
        )
        run.notices.of_room(estimate_room(run))
        run.going_on.start(run.sources)
        run.tell("on_fit_start")
        run.going_on.begin()
        if not run.is_inside_epoch:
            run.notices.of_used_up_budget(budget, run.progress)
        if run.is_alone:
            return budget
        run.consensus.agree({})  # the clocks
        return replace(budget, seconds=None)  # time is agreed on at log points
    except BaseException as error:
        run.note(error)
        run.end_run(StopReason.LEFT)
        raise
