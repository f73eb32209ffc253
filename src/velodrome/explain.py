"""The calls of a run in order, each with its owner: what `Trainer.explain` returns.

Each part says itself what it calls (its `calls` method stands next to the code that it describes); here they are put in the
order in which the loop comes to them, which is that of `loop/fit.py` and `run/run.py`. A test records a run's calls and compares.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from velodrome.loop.epochs import Epoch, run_epochs
from velodrome.loop.modes import evaluation_mode, training_mode
from velodrome.metrics.metric_set import MAX_HELD_BATCHES, MetricSet
from velodrome.metrics.named import SampleMetric
from velodrome.seeding import seed_everything
from velodrome.step.schedules import NO_SCHEDULE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from velodrome.run.run import Run

__all__ = ["Explanation", "path_of"]

Call = tuple[str, Any]
"""What happens, and the function that does it. Any: whatever can be called"""


@dataclass(frozen=True)
class _Line:
    depth: int
    what: str
    owner: str


@dataclass(frozen=True)
class Explanation:
    """The parts of a run, as it knows them.

    Args:
        run: whose parts say what they call.
        events: the callbacks' methods by event; one that nobody overrides is an empty list.
    """

    run: Run
    events: Mapping[str, Sequence[Callable[..., None]]]

    def text(self) -> str:
        """Return one line a call: indented by what it is part of, its owner on the right."""
        lines = list(self._lines())
        width = max(2 * line.depth + len(line.what) for line in lines)
        rows = [f"{'  ' * line.depth}{line.what}".ljust(width + 2) + line.owner for line in lines]
        return "\n".join(row.rstrip() for row in rows)

    def _lines(self) -> Iterator[_Line]:
        run = self.run
        yield _line(0, run.engine.line, run.engine.driven)
        yield _line(0, "a run", run_epochs)
        yield from _lines(1, self._begin())
        yield _line(1, "every epoch", Epoch)
        yield from _lines(2, self._told("on_epoch_start"))
        yield from self._training()
        yield from self._evaluation()
        yield from _lines(2, self._end_of_epoch())
        yield from _lines(1, self._end())
        if run.windows:
            yield _line(0, f"a loss or gradient that is not finite: {run.nonfinite.description}", run.nonfinite._settle)
        if self.events["on_exception"]:
            yield _line(0, "an error that ends a run", run.end_run)
            yield from _lines(1, self._told("on_exception"))

    def _begin(self) -> list[Call]:
        run = self.run
        calls: list[Call] = []
        if run.seed is not None:
            calls.append((f"seed Python, NumPy and PyTorch with {run.seed}", seed_everything))
        if run.world.size > 1:
            calls.append((f"take the weights of the first of {run.world.size} processes", run.consensus.begin))
        calls.append((run.interruption.describe(), run.interruption.begin))
        calls.append((f"open {run.files.writes}", run.files.start))
        return calls + self._told("on_fit_start")

    def _training(self) -> Iterator[_Line]:
        run, accumulates = self.run, [updates.accumulate for updates in self.run.windows.by_name.values()]
        device = run.trainer.device
        yield _line(2, "the training data", Epoch.train)
        begin: list[Call] = [(f"find out how batches reach {device}", run.sources.placer)]
        if any(updates.schedule is not NO_SCHEDULE for updates in run.windows.by_name.values()):
            begin.append(("tell the schedule the length of the run, once", run.schedule_lengths.begin))
        begin += run.precision.calls()
        begin += run.windows.calls().get("training", [])
        begin.append(("training mode", training_mode))
        yield from _lines(3, begin)
        yield _line(3, "every micro-batch" if max(accumulates, default=1) > 1 else "every batch", run.trainer.forward)
        yield from _lines(4, run.engine_phases.calls())
        yield _line(4, "the first of each source of data: check it", run.first_batch.forward)
        yield from _lines(4, run.engine.calls())
        for name, updates in run.windows.by_name.items():
            of = f" of {name}" if len(run.windows) > 1 else ""
            calls = updates.calls()
            yield from _lines(4, [(f"{what}{of}", who) for what, who in calls["backward"]])
            yield _line(4, f"count the loss{of} for the mean of the epoch", run.after_micro_batch)
            window = (
                f"after {updates.accumulate} micro-batches, or fewer where the data end: "
                if updates.accumulate > 1
                else ""
            )
            yield _line(4, f"{window}an update{of}", updates.update)
            yield from _lines(5, calls["update"])
            is_first = name == next(iter(run.windows.by_name))
            yield from _lines(5, run.averaging.calls().get("update", []) if is_first else [])
            yield from _lines(5, self._after_update())
        measured = self._measured()
        yield from _lines(4, measured[:1])
        when = run.keeping.describe().get("step")
        if when is not None and run.files.path is not None:
            yield from _lines(4, [(when, run.saves.save), *self._told("on_checkpoint")])
        yield from _lines(4, measured[1:])

    def _after_update(self) -> list[Call]:
        run = self.run
        row = f"log point every {_times(run.log_every, 'step')}: mean loss to {run.files.writes}"
        return [*self._told("on_step_end"), (row, run.rows.log_interval)]

    def _evaluation(self) -> Iterator[_Line]:
        run = self.run
        yield from _lines(2, run.averaging.calls().get("epoch", []))
        yield _line(2, "an evaluation, where there are validation data", Epoch.evaluate)
        begin = run.precision.calls() + run.windows.calls().get("evaluation", [])
        begin += run.averaging.calls().get("evaluation", [])
        begin.append(("eval mode and inference mode, put back afterwards", evaluation_mode))
        yield from _lines(3, begin)
        yield _line(3, "every batch", run.trainer.forward)
        yield from _lines(4, run.engine.calls())
        yield _line(4, "count the loss and feed the metrics", run.measure)
        yield _line(3, "read the means", run.phases.finish_evaluation)
        yield from _lines(3, self._told("on_evaluate_end"))

    def _end_of_epoch(self) -> list[Call]:
        run = self.run
        calls: list[Call] = [(f"the epoch's row to {run.files.writes}", run.files.write)]
        for updates in run.windows.by_name.values():
            if updates.schedule is not NO_SCHEDULE:
                calls.append(("tell the schedule of the epoch", updates.schedule.after_epoch))
        calls.append((f"compare {run.keeping.monitor} with the best epochs", run.keeping.judge))
        when = run.keeping.describe().get("epoch")
        if when is not None and run.files.path is not None:
            calls += [(when, run.saves.save), *self._told("on_checkpoint")]
        return calls + self._told("on_epoch_end")

    def _end(self) -> list[Call]:
        run = self.run
        calls: list[Call] = []
        if run.files.path is not None:
            calls += [
                ("save the last weights, unless that was just done", run.saves.save),
                *self._told("on_checkpoint"),
            ]
        calls.append(("close the records", run.files.finish))
        return calls + self._told("on_fit_end")

    def _measured(self) -> list[Call]:
        if not self.run.metrics:
            return []
        owners = [
            metric.values if isinstance(metric, SampleMetric) else type(metric).update
            for metric in self.run.metrics.values()
        ]
        calls: list[Call] = [(f"keep outputs for {', '.join(self.run.metrics)}", MetricSet.update)]
        return calls + [
            (f"up to {MAX_HELD_BATCHES} batches at once: {name}", who)
            for name, who in zip(self.run.metrics, owners, strict=True)
        ]

    def _told(self, event: str) -> list[Call]:
        return [(event, method) for method in self.events[event]]


def path_of(owner: Any) -> str:
    """Return where something that is called is defined: "velodrome.step.updates.Updates.update".

    Args:
        owner: a function, a method, a class, or an object that can be called.
    """
    while isinstance(owner, functools.partial):
        owner = owner.func
    if isinstance(owner, torch.nn.Module):
        owner = type(owner).forward
    if not hasattr(owner, "__qualname__"):
        owner = type(owner).__call__
    return f"{owner.__module__}.{owner.__qualname__}"


def _line(depth: int, what: str, owner: Any) -> _Line:
    return _Line(depth, what, path_of(owner))


def _lines(depth: int, calls: Sequence[Call]) -> list[_Line]:
    return [_line(depth, what, owner) for what, owner in calls]


def _times(count: int, unit: str) -> str:
    return unit if count == 1 else f"{count} {unit}s"
