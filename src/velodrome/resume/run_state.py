"""Everything of a run that a checkpoint holds besides the weights, gathered and given back.

```text
optimizer.safetensors   what the optimizers keep for each parameter, by its name
callbacks.safetensors   tensors among the state of callbacks
*-rank0.safetensors     what each process has of its own, see `own_state`; one of each for every process
state.json              all the rest, under "resume"; what belongs to one process in its list "ranks"
```
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.nested import join, split
from velodrome.checkpoint.read import read_tensors
from velodrome.errors import CheckpointError
from velodrome.loop.progress import Progress, StopReason
from velodrome.resume.own_state import (
    GROUPS,
    OWN_NAMES,
    OWN_OF_WINDOW,
    OwnState,
    clean_parameters,
    load_gradients,
    window_counts,
)
from velodrome.step.optimizer_state import load_optimizer_state, optimizer_state, parameter_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from velodrome.callbacks.base import Callback
    from velodrome.run.run import Run

__all__ = ["SavedState", "collect_state", "load_callbacks", "load_trainer_state", "named_callbacks"]

_SHARED_GROUPS = ("optimizer", "callbacks")
_FIELDS = (
    "optimizers", "updates", "callbacks", "ranks", "position", "row", "keeping", "last_averaged_step", "stop",
    "journal_bytes", "order_seed", "settings",
)  # fmt: skip


@dataclass(kw_only=True)
class SavedState:
    """Groups of tensors by name, and what `state.json` says of them."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def add(self, group: str, name: str, value: Any) -> None:
        """Take in a nested state of one name; its tensors belong to this group."""
        self.state[name] = split(value, self.tensors.setdefault(group, {}), place=name)

    @classmethod
    def read(cls, path: Path, state: Mapping[str, Any], *, rank: int = 0, size: int = 1) -> SavedState:
        """Read the groups of a checkpoint folder, hashes checked.

        Args:
            path: the folder.
            state: its `state.json`.
            rank, size: of the process that reads: what others have of their own is read only where their number has changed.
        Raises:
            CheckpointError: a file or an entry is missing or damaged.
        """
        resume = dict(state["resume"])
        missing = [name for name in _FIELDS if name not in resume]
        missing += [name for name in ("progress", "averaging") if name not in state]
        ranks = resume.get("ranks")
        if isinstance(ranks, list):
            missing += [f"ranks/{name}" for name in OWN_NAMES if not all(name in rank for rank in ranks)]
        if missing or not isinstance(ranks, list) or not ranks:
            raise CheckpointError(
                f"{path} does not say {', '.join(missing) or 'which processes trained'}, without which no run can go on from it. Another release "
                f"wrote it, or it was changed by hand: use another checkpoint. Its weights can be loaded with velodrome.load_model.",
                path=path,
            )
        wanted = [rank] if size == len(ranks) else range(len(ranks))
        names = [*_SHARED_GROUPS, *(f"{group}-rank{each}" for group in GROUPS for each in wanted)]
        return cls(tensors={name: read_tensors(path, name) for name in names}, state=resume)

    def get(self, group: str, name: str) -> Any:
        """Return what `add` was given."""
        return join(self.state[name], self.tensors[group])

    @property
    def num_processes(self) -> int:
        """How many processes trained together."""
        return len(self.state["ranks"])

    def take_in(self, own: Sequence[OwnState]) -> None:
        """Take in what each process has of its own, by rank."""
        self.state["ranks"] = [each.state for each in own]
        for rank, each in enumerate(own):
            for group in GROUPS:
                self.tensors[f"{group}-rank{rank}"] = each.tensors.get(group, {})

    @property
    def owns(self) -> list[OwnState | None]:
        """What each process had of its own, by rank; None where it was not read."""
        return [
            OwnState(state=state, tensors={group: self.tensors[f"{group}-rank{rank}"] for group in GROUPS})
            if f"{GROUPS[0]}-rank{rank}" in self.tensors
            else None
            for rank, state in enumerate(self.state["ranks"])
        ]


def collect_state(run: Run, own: Sequence[OwnState]) -> SavedState:
    """Return the state of a run between two batches, or between two epochs.

    Args:
        run: in the process that writes.
        own: what each process has of its own, by rank; see `collect_own`.
    Raises:
        CheckpointError: an optimizer, a metric or a callback has a state that no checkpoint can hold; names its place.
    """
    saved, position = SavedState(), run.position
    named = clean_parameters(run.model)
    saved.add(
        "optimizer",
        "optimizers",
        {
            name: optimizer_state(each.optimizer, parameter_names(each.optimizer, named))
            for name, each in run.windows.by_name.items()
        },
    )
    updates = {
        name: {key: value for key, value in each.state_dict().items() if key not in OWN_OF_WINDOW}
        for name, each in run.windows.by_name.items()
    }
    saved.add("optimizer", "updates", updates)
    saved.add("callbacks", "callbacks", callback_states(run) if position.callbacks is None else position.callbacks)
    saved.take_in(own)
    saved.state |= {
        "position": split(position.describe(), {}, place="position"),
        "row": split(run.row, {}, place="row"),
        "keeping": run.keeping.state_dict(),
        "nonfinite": {"policy": run.nonfinite.name, **run.nonfinite.state_dict()},
        "last_averaged_step": run.averaging.last_step,
        "part_sizes": dict(run.part_sizes),
        "stop": None if run.stop_requested in (None, StopReason.NOT_SAVED) else run.stop_requested.name.lower(),
        "journal_bytes": run.files.sync_journal(),
        "order_seed": run.order_seed,
        "settings": run.settings,
    }
    return saved


def load_trainer_state(run: Run, saved: SavedState, progress: Mapping[str, Any]) -> None:
    """Give optimizers, scalers, schedules, open windows and counters their saved state; the weights were loaded before.

    Raises:
        RefusedError: the optimizer's parameters are others.
        CheckpointError: a schedule is of another kind.
    """
    named = clean_parameters(run.model)
    optimizers, updates = saved.get("optimizer", "optimizers"), saved.get("optimizer", "updates")
    windows = window_counts(run, saved.owns)
    for name, each in run.windows.by_name.items():
        load_optimizer_state(each.optimizer, optimizers[name], parameter_names(each.optimizer, named))
        each.load_state_dict({**updates[name], **windows[name]})
    load_gradients(run, saved.owns)
    for name, value in Progress(**progress).__dict__.items():
        setattr(run.progress, name, value)
    run.keeping.load_state_dict(saved.state["keeping"])
    run.part_sizes.update(saved.state.get("part_sizes", {}))  # checkpoints of earlier versions have none
    answers = dict(saved.state.get("nonfinite", {}))
    if answers.pop("policy", None) == run.nonfinite.name:
        run.nonfinite.load_state_dict(answers)
    stop = saved.state["stop"]
    run.stop_requested = None if stop is None else StopReason.of(stop)


def callback_states(run: Run) -> dict[str, Any]:
    """Return the states of the callbacks by their names."""
    return {name: each.state_dict() for name, each in named_callbacks(run.callbacks)}


def load_callbacks(run: Run, saved: SavedState) -> list[str]:
    """Give the callbacks their saved states; return the names of states that nobody here takes.

    Every process gets the states of rank 0, but for those that were others in it, see `collect_own`.
    """
    states = saved.get("callbacks", "callbacks")
    own = saved.owns[run.world.rank] if saved.num_processes == run.world.size else None
    if own is not None:
        states |= own.get("callbacks")
    for name, callback in named_callbacks(run.callbacks):
        if name in states:
            callback.load_state_dict(states.pop(name))  # type: ignore[attr-defined]
    return sorted(states)


def named_callbacks(callbacks: list[Callback]) -> Iterator[tuple[str, Any]]:
    """Yield the callbacks that have a state, by class and number: "EarlyStopping-0"."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        index = seen[kind] = seen.get(kind, -1) + 1
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            yield f"{kind}-{index}", callback
