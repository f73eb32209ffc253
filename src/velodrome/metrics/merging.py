"""Metrics over several processes: the states of all of them, put together as torchmetrics does, without padding.

torchmetrics pads shards to equal length or fails where a process had no sample. Here each process's states travel as they are,
and a process that saw no batch adds none.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "ALONE",
    "MetricWorld",
    "absorb_state",
    "check_mergeable",
    "load_state_of",
    "merged_states",
    "parts_of",
    "state_of",
]

T = TypeVar("T")


class MetricWorld(Protocol):
    """What a metric asks of the processes that evaluate together."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        ...

    def merge_sums(self, sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        """Return element-wise sums by name, over all processes."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
        ...


class _Alone:
    """One process."""

    size = 1

    def any(self, flag: bool) -> bool:
        return flag

    def merge_sums(self, sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        return sums

    def gather(self, value: T) -> list[T]:
        return [value]


ALONE: MetricWorld = _Alone()


def check_mergeable(name: str, metric: Any) -> None:
    """Refuse a metric whose state other processes cannot be given.

    Raises:
        ArgumentError: it is neither made of torchmetrics objects nor has a `merge_state` of its own.
    """
    if not parts_of(metric) and not hasattr(metric, "merge_state"):
        raise ArgumentError(
            f"The metric {name!r} is a {type(metric).__name__}, whose state several processes cannot put together. Give a torchmetrics "
            f"object, a function of (output, target), or a metric with merge_state(other)."
        )


@contextmanager
def merged_states(metric: Any, others: MetricWorld) -> Iterator[None]:
    """Let a metric have the states of all processes for a while; afterwards it has its own again.

    Cost: one exchange of objects; states go through the CPU.
    """
    if others.size == 1:
        yield
        return
    parts = parts_of(metric)
    with ExitStack() as stack:
        if parts:
            told = others.gather([_state(part) for part in parts])
            for index, part in enumerate(parts):
                stack.enter_context(_with_states(part, [states[index] for states in told]))
        else:
            stack.enter_context(_with_merged_object(metric, others.gather(metric)))
        yield


def parts_of(metric: Any) -> list[Any]:
    """Return the torchmetrics objects that a metric is made of: itself, the members of a collection, what a wrapper wraps."""
    modules = metric.modules() if isinstance(metric, torch.nn.Module) else [metric]
    return [module for module in modules if hasattr(module, "_reductions") and hasattr(module, "_defaults")]


def state_of(part: Any) -> dict[str, Any]:
    """Return a metric's own states and how often it was updated, for a checkpoint."""
    return {"updates": part._update_count, "states": {name: getattr(part, name) for name in part._reductions}}


def load_state_of(part: Any, saved: dict[str, Any]) -> None:
    """Give a metric the states that `state_of` returned, on its device."""
    part._update_count = saved["updates"]
    part._computed = None
    for name, value in saved["states"].items():
        # A copy: a state is added to in place, and what was read may be shared.
        on_device = [each.to(part.device).clone() for each in (value if isinstance(value, list) else [value])]
        setattr(part, name, on_device if isinstance(value, list) else on_device[0])


def absorb_state(metric: Any, other: Any) -> bool:
    """Let a metric be what it and another of its kind, of another process, have seen together.

    Returns:
        False where that cannot be: a state without a reduction is put together only when the value is computed.
    """
    parts, others = parts_of(metric), parts_of(other)
    if not parts:
        metric.merge_state(other)
        return True
    pairs = [(part, its) for part, its in zip(parts, others, strict=True) if its._update_count or not its._reductions]
    for part, _ in pairs:
        if part._update_count and any(
            reduction is None and isinstance(getattr(part, name), Tensor)
            for name, reduction in part._reductions.items()
        ):
            return False
    for part, its in pairs:
        for name, reduction in part._reductions.items():
            own, more = getattr(part, name), getattr(its, name)
            if isinstance(own, list):  # goes on being one
                together: Any = [*own, *(more if isinstance(more, list) else [more])]
            else:
                together = _reduce([own, more], reduction, part) if part._update_count else more.clone()
            setattr(part, name, together)
        part._update_count += its._update_count
        part._computed = None
    return True


def _state(part: Any) -> dict[str, Any] | None:
    """Return a metric's states on the CPU, or None when it saw no batch: its defaults are no observation."""
    if part._reductions and not part._update_count:
        return None
    return {name: _to_cpu(getattr(part, name)) for name in part._reductions}


@contextmanager
def _with_states(part: Any, told: list[dict[str, Any] | None]) -> Iterator[None]:
    """Put the states of all processes together by each state's own reduction, and keep the metric from asking others itself."""
    states = [state for state in told if state is not None]
    names = [*part._reductions, "_update_count", "_computed", "_to_sync", "_is_synced"]
    before = {name: getattr(part, name) for name in names}
    part._to_sync = False
    part._computed = None
    if states:
        part._update_count = max(1, part._update_count)  # else it warns that compute() came before update()
        for name, reduction in part._reductions.items():
            setattr(part, name, _reduce([state[name] for state in states], reduction, part))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(part, name, value)
        part._computed = None


def _reduce(values: list[Any], reduction: Any, part: Any) -> Any:
    """Return one state out of those of several processes, as `torchmetrics.Metric` does after it has gathered them."""
    if isinstance(values[0], Tensor):
        together: Any = torch.stack([value.to(part.device) for value in values])
    else:
        together = [item.to(part.device) for value in values for item in value]
        if not together:
            return []
    return together if reduction is None else reduction(together)


@contextmanager
def _with_merged_object(metric: Any, all_of_them: list[Any]) -> Iterator[None]:
    """Let an object of the user's own be, for a while, the one that has merged all others."""
    before = dict(vars(metric))
    first, *rest = all_of_them
    for other in rest:
        first.merge_state(other)
    vars(metric).update(vars(first))
    try:
        yield
    finally:
        vars(metric).clear()
        vars(metric).update(before)


def _to_cpu(state: Any) -> Any:
    # SYNC: the end of a phase with several processes
    if isinstance(state, Tensor):
        return state.detach().cpu()  # SYNC: the end of a phase with several processes
    return [item.detach().cpu() for item in state]  # SYNC: the end of a phase with several processes
