"""How long a run is, as its learning-rate schedules count it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.loop.host import length_of

if TYPE_CHECKING:
    from velodrome.run.run import Run

__all__ = ["ScheduleLengths"]


class ScheduleLengths:
    """Tells the schedules of all optimizers the length of the run, once its data are known.

    Args:
        run: whose optimizers they are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_known = False

    def forget(self) -> None:
        """A run begins, with data and a budget of its own."""
        self._is_known = False

    def begin(self, source: Any) -> None:
        """Tell the length of a run over these data; only the first ones of a run count.

        Raises:
            ArgumentError: a schedule does not fit into it.
        """
        if self._is_known:
            return
        self._is_known = True
        run = self._run
        budget, batches, several = run.budget, length_of(source), len(run.windows)
        try:
            for updates in run.windows.by_name.values():
                per_epoch = None if batches is None else -(-batches // updates.accumulate)
                # The budget counts the updates of all optimizers, which take turns.
                steps = None if budget.steps is None else -(-budget.steps // several)
                updates.schedule.start(steps_per_epoch=per_epoch, epochs=budget.epochs, steps=steps)
            run.notices.of_schedules(run.windows)
        except BaseException as error:
            run.note(error)
            raise
