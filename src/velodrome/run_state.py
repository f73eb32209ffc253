"""Everything of a run that a checkpoint holds besides the weights, gathered and given back.

```text
optimizer.safetensors   what the optimizers keep for each parameter, by its name
window.safetensors      gradients of accumulation windows that are open
rng-rank0.safetensors   Python, NumPy, torch, each CUDA device
sums-rank0.safetensors  sums and metrics of the training phase under way
callbacks.safetensors   tensors among the state of callbacks
state.json              all the rest, under "resume"
```
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.nested import join, split
from velodrome.checkpoint.read import read_tensors
from velodrome.loop.progress import Progress, StopReason
from velodrome.seeding import get_random_state
from velodrome.step.optimizer_state import load_optimizer_state, optimizer_state, parameter_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from velodrome.callbacks.base import Callback
    from velodrome.run import Run

__all__ = ["SavedState", "collect_state", "load_callbacks", "load_trainer_state"]

_GROUPS = ("optimizer", "window", "rng-rank0", "sums-rank0", "callbacks")


@dataclass(kw_only=True)
class SavedState:
    """Groups of tensors by name, and what `state.json` says of them."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def add(self, group: str, name: str, value: Any) -> None:
        """Take in a nested state of one name; its tensors belong to this group."""
        self.state[name] = split(value, self.tensors.setdefault(group, {}), place=name)

    @classmethod
    def read(cls, path: Path, state: Mapping[str, Any]) -> SavedState:
        """Read the groups of a checkpoint folder, hashes checked.

        Args:
            path: the folder.
            state: its `state.json`.
        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return cls(tensors={group: read_tensors(path, group) for group in _GROUPS}, state=dict(state["resume"]))

    def get(self, group: str, name: str) -> Any:
        """Return what `add` was given."""
        return join(self.state[name], self.tensors[group])


def collect_state(run: Run) -> SavedState:
    """Return the state of a run between two batches, or between two epochs.

    Raises:
        CheckpointError: an optimizer, a metric or a callback has a state that no checkpoint can hold; names its place.
    """
    saved, position, progress = SavedState(), run.position, run.progress
    run.windows.settle_blocking()
    named = clean_parameters(run.model)
    saved.add(
        "optimizer",
        "optimizers",
        {
            name: optimizer_state(each.optimizer, parameter_names(each.optimizer, named))
            for name, each in run.windows.by_name.items()
        },
    )
    saved.add("optimizer", "updates", {name: each.state_dict() for name, each in run.windows.by_name.items()})
    saved.add("window", "gradients", _gradients(run, named))
    # Within an evaluation the generators may have moved on already, and it is run again whole.
    evaluates = position.stage == "open" and position.source is None
    random = position.after_training if evaluates else None
    saved.add("rng-rank0", "random", get_random_state(run.trainer.device) if random is None else random)
    saved.add("rng-rank0", "loop_start", position.loop_start)
    saved.add("sums-rank0", "phase", run.train_phase.state_dict() if position.stage == "open" else None)
    saved.add("callbacks", "callbacks", callback_states(run) if position.callbacks is None else position.callbacks)
    inside = run.train_phase.batches_done if position.source is not None else 0
    saved.state |= {
        "position": split(position.describe(epoch=progress.epochs_done, batches_done=inside), {}, place="position"),
        "row": split(run.row, {}, place="row"),
        "interval_samples": run.interval_samples,
        "keeping": run.keeping.state_dict(),
        "last_averaged_step": run.averaging.last_step,
        "stop": None if run.stop_requested is None else run.stop_requested.name.lower(),
        "journal_bytes": run.files.sync_journal(),
        "order_seed": run.order_seed,
        "settings": run.settings,
        "data": run.data_facts,
    }
    return saved


def load_trainer_state(run: Run, saved: SavedState, progress: Mapping[str, Any]) -> None:
    """Give optimizers, scalers, schedules and counters their saved state; the weights were loaded before.

    Raises:
        RefusedError: the optimizer's parameters are others.
        CheckpointError: a schedule is of another kind.
    """
    named = clean_parameters(run.model)
    optimizers, updates = saved.get("optimizer", "optimizers"), saved.get("optimizer", "updates")
    for name, each in run.windows.by_name.items():
        load_optimizer_state(each.optimizer, optimizers[name], parameter_names(each.optimizer, named))
        each.load_state_dict(updates[name])
    parameters = _all_parameters(run, named)
    for name, gradient in saved.get("window", "gradients").items():
        parameter = parameters[name]
        parameter.grad = gradient.to(parameter.device)
    for name, value in Progress(**progress).__dict__.items():
        setattr(run.progress, name, value)
    run.keeping.load_state_dict(saved.state["keeping"])
    stop = saved.state["stop"]
    run.stop_requested = None if stop is None else StopReason.of(stop)


def load_callbacks(run: Run, saved: SavedState) -> list[str]:
    """Give the callbacks their saved states; return the names of states that nobody here takes."""
    states = saved.get("callbacks", "callbacks")
    for name, callback in named_callbacks(run.callbacks):
        if name in states:
            callback.load_state_dict(states.pop(name))  # type: ignore[attr-defined]
    return sorted(states)


def callback_states(run: Run) -> dict[str, Any]:
    """Return the states of the callbacks by name."""
    return {name: each.state_dict() for name, each in named_callbacks(run.callbacks)}


def named_callbacks(callbacks: list[Callback]) -> Iterator[tuple[str, Any]]:
    """Yield the callbacks that have a state, by class and number: "EarlyStopping-0"."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        index = seen[kind] = seen.get(kind, -1) + 1
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            yield f"{kind}-{index}", callback


def clean_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by the names that checkpoints use."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    return {clean: named[name] for name, clean in clean_names(named).items()}


def _all_parameters(run: Run, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of all optimizers by name."""
    return {
        name: parameter
        for updates in run.windows.by_name.values()
        for group, names in zip(updates.optimizer.param_groups, parameter_names(updates.optimizer, named), strict=True)
        for parameter, name in zip(group["params"], names, strict=True)
    }


def _gradients(run: Run, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of open windows: none where every window was just closed, which is the rule."""
    if not run.windows.open_ones:
        return {}
    return {name: each.grad for name, each in _all_parameters(run, named).items() if each.grad is not None}
