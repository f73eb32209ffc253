"""What the processes of a run agree on at log points: how far they are, and whether to stop, to save or to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.loop.progress import StopReason
from velodrome.run.together import Agreement, Together

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.data.source import Source
    from velodrome.distributed.pace import Pace
    from velodrome.run.run import Run

__all__ = ["Consensus"]


class Consensus:
    """Tells the others what this process wishes, and has the run do what was agreed on; nothing where it is alone.

    Args:
        run: of this process.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._together = Together(run.world, run.progress)
        self.wanted_stop: StopReason | None = None
        """what this process asks for, and all do when they next agree"""
        self.save_was_asked = False

    def begin(self) -> None:
        """See to it that all processes begin with the same weights and settings."""
        run = self._run
        facts = {
            "seed": run.seed,
            "log_every": run.log_every,
            "budget": str(run.budget),
            "checkpoint": str(run.keeping.policy),
            "on_nonfinite": run.nonfinite.name,
            "optimizers": [
                f"{name}: {type(each.optimizer).__name__}, accumulate={each.accumulate}"
                for name, each in run.windows.by_name.items()
            ],
        }
        parameters = [parameter for updates in run.windows.by_name.values() for parameter in updates.parameters]
        self._together.begin(run.model, parameters, facts, run.seed)

    def check_data(self, source: Source) -> None:
        """Check that all processes read the same data, as far as the source can tell."""
        self._together.check_data(source.shared_facts)

    def count_from_here(self) -> None:
        """All processes have the same counters now: a run goes on."""
        self._together.count_from_here()

    @property
    def pace(self) -> Pace:
        """How fast each process is by itself."""
        return self._together.pace

    def add_up(self, sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        """Return the sums over all processes; agree on the way."""
        return sums if self._run.is_alone else self.agree(sums).sums

    def agree(self, sums: Mapping[str, list[float]], **more: Any) -> Agreement:
        """Agree with the other processes how far the run is, and whether to stop, to save or to leave; and tell them more."""
        run = self._run
        agreement = self._together.agree(
            sums,
            stop=self.wanted_stop,
            save_is_due=run.keeping.is_due_after_step(run.progress),
            save_was_asked=self.save_was_asked,
            is_inside=run.phases.is_in_loop,
            leave=run.wants_to_leave,
            **more,
        )
        self.save_was_asked = False
        run.notices.of_pace(self.pace)
        run.heed_others([wish["leave"] for wish in agreement.wishes])
        stops = [wish["stop"] for wish in agreement.wishes if wish["stop"] is not None]
        seconds = run.budget.seconds
        if run.stop_requested is None:
            if stops:
                run.stop_requested = stops[0]
            elif seconds is not None and run.progress.seconds >= seconds:
                run.stop_requested = StopReason.SECONDS
        # Of saves by time or samples rank 0 has the clock; one that somebody asked for is made for all.
        is_due = not run.keeping.counts_steps and agreement.wishes[0]["save_is_due"]
        run.save_is_agreed = is_due or any(wish["save_was_asked"] for wish in agreement.wishes)
        run.saves.together.inside = [wish["is_inside"] for wish in agreement.wishes]
        return agreement
