"""What the processes of a run agree on: that they run the same thing, how far they are, and whether to stop or to save.

Between log points nothing is exchanged but gradients. So counters of samples, requests to stop, budgets of time and saves that
are due by time or samples are agreed on at log points and at the ends of phases and epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from velodrome.distributed.pace import Pace
from velodrome.distributed.world import sum_by_name
from velodrome.errors import ArgumentError, WorldError
from velodrome.seeding import seed_everything, seed_of_rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from velodrome.distributed.world import World
    from velodrome.loop.progress import Progress

__all__ = ["Agreement", "Together"]


@dataclass(frozen=True, kw_only=True)
class RunCounters:
    """What one process tells the others at a log point."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    samples: int = 0
    """handed out since the last time"""
    seconds: float = 0.0
    own_s: float = 0.0
    """worked since the last time, and not waited for the others"""
    wishes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """What everybody knows afterwards; the same in every process."""

    sums: Mapping[str, list[float]]
    wishes: list[dict[str, Any]]
    """of each process, by rank"""


class Together:
    """Brings a run's counters into line with those of the other processes.

    Args:
        world: the processes.
        progress: its samples are this process's own between two agreements, and everybody's after one.
    """

    def __init__(self, world: World, progress: Progress) -> None:
        self.world = world
        self._progress = progress
        self._samples = progress.samples_done
        self._pace = Pace(world.size)
        self._own_until = perf_counter()
        self._waited_until = world.waited_s

    def count_from_here(self) -> None:
        """Take the counters as they are for what all know."""
        self._samples = self._progress.samples_done

    def begin(
        self, model: nn.Module, parameters: Iterable[nn.Parameter], facts: Mapping[str, object], seed: int | None
    ) -> None:
        """Check that all processes run the same thing, and give them the weights of rank 0 and random streams of their own.

        Args:
            model: its parameters and buffers become those of rank 0.
            parameters: of the optimizers; those outside of the model, too.
            facts: settings by name that must not differ.
            seed: of the run, or None.
        Raises:
            WorldError: names the rank and what differs.
        """
        if self.world.size == 1:
            return
        held = [*model.named_parameters(), *model.named_buffers()]
        lazy = [name for name, value in held if is_lazy(value)]
        if lazy:
            raise ArgumentError(
                f"The parameter {lazy[0]!r} of a lazy module has no shape yet, and each process would make its own. Run one batch through "
                f"the model before the Trainer is made."
            )
        layout = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in held if not value.is_meta}
        all_seeds = []
        for rank, (others_facts, others_layout, others_seed) in enumerate(
            self.world.gather((dict(facts), layout, torch.initial_seed()))
        ):
            _check_same("setting", others_facts, dict(facts), rank, self.world.rank)
            _check_same("model's", others_layout, layout, rank, self.world.rank)
            all_seeds.append(others_seed)
        self.world.broadcast_from_main(model)
        own = {id(parameter) for parameter in model.parameters()}
        others = [parameter for parameter in parameters if id(parameter) not in own]
        if others:
            self.world.broadcast_from_main(nn.ParameterList(others))
        # The same dropout in every process would be a smaller batch of dropout masks. Who seeded each process by hand knows better.
        rank = self.world.rank
        if rank and (seed is not None or all_seeds[rank] == all_seeds[0]):
            seed_everything(seed_of_rank(all_seeds[0] if seed is None else seed, rank))

    def agree(self, sums: Mapping[str, list[float]], **wishes: Any) -> Agreement:
        """Exchange sums, counters and wishes; every process calls this at the same step.

        Cost: one exchange of objects.
        """
        progress = self._progress
        new = progress.samples_done - self._samples
        own_s = perf_counter() - self._own_until - (self.world.waited_s - self._waited_until)
        told = self.world.gather(
            RunCounters(sums=dict(sums), samples=new, seconds=progress.seconds, own_s=own_s, wishes=wishes)
        )
        self._own_until, self._waited_until = perf_counter(), self.world.waited_s
        self._pace.note([each.own_s for each in told], progress.steps_done)
        all_new = sum(each.samples for each in told)
        progress.samples_done += all_new - new
        progress.samples_in_epoch += all_new - new
        progress.seconds = told[0].seconds  # the records are those of rank 0
        self._samples = progress.samples_done
        return Agreement(sum_by_name(each.sums for each in told), [each.wishes for each in told])

    @property
    def pace(self) -> Pace:
        """How fast each process is by itself."""
        return self._pace

    def check_data(self, facts: Mapping[str, object] | None) -> None:
        """Check that all processes read the same data; None where each is known to have its own.

        Raises:
            WorldError: names the rank and what differs.
        """
        for rank, others in enumerate(self.world.gather((facts,))):
            if facts is not None and others[0] is not None:
                _check_same("data's", others[0], facts, rank, self.world.rank)


def _check_same(what: str, theirs: Mapping[str, object], ours: Mapping[str, object], rank: int, own_rank: int) -> None:
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise WorldError(
                f"The {what} {name!r} is {theirs.get(name, 'missing')} in rank {rank} and {ours.get(name, 'missing')} in rank {own_rank}. "
                f"All processes must train the same model on the same data with the same settings: build them from the same code and arguments.",
                rank=rank,
            )
