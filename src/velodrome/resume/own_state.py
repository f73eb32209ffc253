"""What each process of a run has of its own, gathered into one checkpoint and given back: to as many processes, or to others.

```text
rng-rank0.safetensors      Python, NumPy, torch, each CUDA device
sums-rank0.safetensors     sums and metrics of the training phase under way, the data's position, buffers and callbacks that
                           are not those of rank 0
window-rank0.safetensors   gradients of accumulation windows that are open
```

As many processes as then go on bit for bit. With another number sums and gradients of all are added up in rank 0, and the others
begin at zero: means, metrics and the next update count every sample once, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.nested import join, split
from velodrome.record.progress import NoProgress
from velodrome.seeding import get_random_state, seed_everything, seed_of_rank, set_random_state
from velodrome.step.optimizer_state import parameter_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from velodrome.run.run import Run
    from velodrome.step.updates import Updates

__all__ = [
    "GROUPS",
    "OWN_NAMES",
    "OWN_OF_WINDOW",
    "OwnState",
    "clean_parameters",
    "collect_own",
    "load_buffers",
    "load_gradients",
    "load_phase",
    "load_random",
    "window_counts",
]

GROUPS = ("rng", "sums", "window")
_GROUP_OF = {
    "random": "rng", "loop_start": "rng", "phase": "sums", "loop": "sums", "data": "sums", "buffers": "sums", "callbacks": "sums",
    "windows": "window",
}  # fmt: skip
OWN_NAMES = tuple(_GROUP_OF)
"""the entries of each process"""
OWN_OF_WINDOW = ("token_base", "micro_batches", "base", "items")
"""the entries of `Updates.state_dict` that are not the same in every process"""


@dataclass(kw_only=True)
class OwnState:
    """Plain values by name, and their tensors by group."""

    state: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        """Take in a nested state."""
        self.state[name] = split(value, self.tensors.setdefault(_GROUP_OF[name], {}), place=name)

    def get(self, name: str) -> Any:
        """Return what `add` was given."""
        return join(self.state[name], self.tensors[_GROUP_OF[name]])

    def to_cpu(self) -> OwnState:
        """Return the same with its tensors on the CPU, ready to travel."""
        tensors = {
            group: {
                name: each.detach().cpu() for name, each in named.items()
            }  # SYNC: a checkpoint of several processes
            for group, named in self.tensors.items()
        }
        return OwnState(state=self.state, tensors=tensors)


def collect_own(run: Run, *, callbacks: Mapping[str, Any] | None = None) -> OwnState:
    """Return what this process has of its own, between two batches or between two epochs.

    Args:
        run: under way.
        callbacks: states by name that are not those of rank 0.
    Raises:
        CheckpointError: a metric or a callback has a state that no checkpoint can hold; names its place.
    """
    own, position = OwnState(), run.position
    run.windows.settle_blocking()
    # Within an evaluation the generators may have moved on already, and it is run again whole.
    evaluates = position.stage == "open" and position.source is None
    random = position.after_training if evaluates else None
    own.add("random", get_random_state(run.trainer.device) if random is None else random)
    own.add("loop_start", position.loop_start)
    own.add("phase", run.train_phase.state_dict() if position.stage == "open" else None)
    inside = run.train_phase.batches_done if position.source is not None else 0
    own.add("loop", position.describe_loop(epoch=run.progress.epochs_done, batches_done=inside))
    own.add("data", run.data_facts)
    own.add("buffers", _own_buffers(run) if position.source is not None and run.world.rank else {})
    own.add("callbacks", dict(callbacks or {}))
    own.add("windows", {name: _window(run, each) for name, each in run.windows.by_name.items()})
    return own


# -- given back ---------------------------------------------------------------------------------------------------------------


def load_random(run: Run, owns: Sequence[OwnState | None], name: str = "random") -> None:
    """Put the generators back; a process that was not there then gets streams of its own, from seed, step and rank.

    Args:
        run: that goes on.
        owns: of each process then; None where it was not read.
        name: "random", or "loop_start" where that was noted.
    """
    rank = run.world.rank
    own = owns[rank] if rank < len(owns) else None
    if own is not None:
        state = own.get(name)
        if state is not None:
            set_random_state(state, run.trainer.device)
    elif name == "random":
        seed = run.order_seed or 0
        seed_everything(seed_of_rank(seed_of_rank(seed, run.progress.steps_done + 1), rank))


def load_phase(run: Run, owns: Sequence[OwnState | None]) -> None:
    """Bring back the sums and metrics of the training phase under way."""
    phase, rank = run.train_phase, run.world.rank
    if len(owns) == run.world.size:
        phase.load_state_dict(_held(owns[rank]).get("phase"))
        return
    phase.load_state_dict(_held(owns[0]).get("phase"))
    if rank:
        phase.forget_own()
        return
    for own in owns[1:]:
        other = run.phases.new("train", NoProgress())
        other.load_state_dict(_held(own).get("phase"))
        for metric in phase.absorb(other):
            run.notices.warn_all(
                f"{metric} of epoch {run.row['epoch']} leaves out what other processes than rank 0 had seen before: its states cannot be "
                f"added up."
            )


def load_buffers(run: Run, owns: Sequence[OwnState | None]) -> None:
    """Bring back buffers that this process had and rank 0 had not; the others came with the model."""
    if len(owns) != run.world.size or not run.world.rank:
        return
    held = dict(run.model.named_buffers())
    clean = clean_names(held)
    saved = _held(owns[run.world.rank]).get("buffers")
    for name, buffer in held.items():
        if clean[name] in saved and saved[clean[name]].shape == buffer.shape:
            buffer.copy_(saved[clean[name]])


def window_counts(run: Run, owns: Sequence[OwnState | None]) -> dict[str, dict[str, Any]]:
    """Return by optimizer what `Updates.load_state_dict` wants to know of the open windows."""
    if len(owns) == run.world.size:
        windows = _held(owns[run.world.rank]).get("windows")
        return {name: {key: windows[name][key] for key in OWN_OF_WINDOW} for name in run.windows.by_name}
    return {
        name: _merged_counts(run, [_held(own).get("windows")[name] for own in owns]) for name in run.windows.by_name
    }


def load_gradients(run: Run, owns: Sequence[OwnState | None]) -> None:
    """Put the gradients of open windows on their parameters."""
    same = len(owns) == run.world.size
    named = clean_parameters(run.model)
    for name, updates in run.windows.by_name.items():
        parameters = _parameters_of(updates, named)
        mine = [owns[run.world.rank]] if same else [] if run.world.rank else list(owns)
        windows = [_held(own).get("windows")[name] for own in mine]
        for window in windows:
            share = float(window["base"]) / updates.base  # each loss was weighted relative to its own base
            for key, gradient in window["gradients"].items():
                parameter = parameters[key]
                value = gradient.to(parameter.device) if share == 1.0 else gradient.to(parameter.device) * share
                parameter.grad = value if parameter.grad is None else parameter.grad + value
        if updates.micro_batches and updates.accumulate == 1 and run.is_alone:
            updates.free_gradients()
            run.files.warn(
                f"warning: The open accumulation window of {name!r} is dropped, {windows[0]['micro_batches']} micro-batches: with "
                f"accumulate=1 in one process there are no windows."
            )


# -- inner works --------------------------------------------------------------------------------------------------------------


def _held(own: OwnState | None) -> OwnState:
    assert own is not None
    return own


def _window(run: Run, updates: Updates) -> dict[str, Any]:
    """Return counts and gradients of a window; no gradients where it was just closed, which is the rule."""
    state = updates.state_dict()
    gradients = {}
    if updates.micro_batches:
        parameters = _parameters_of(updates, clean_parameters(run.model))
        gradients = {name: each.grad for name, each in parameters.items() if each.grad is not None}
    return {**{key: state[key] for key in OWN_OF_WINDOW}, "gradients": gradients}


def _merged_counts(run: Run, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of one window out of those of other processes; rank 0 has all items."""
    first = next((window for window in windows if window["micro_batches"]), windows[0])
    items = sum(window["items"] for window in windows if window["micro_batches"])
    return {
        "token_base": windows[0]["token_base"],
        "micro_batches": max(window["micro_batches"] for window in windows),
        "base": 1.0 if run.world.rank else first["base"],
        "items": 0.0 if run.world.rank else items,
    }


def _own_buffers(run: Run) -> dict[str, Tensor]:
    """Return the buffers of the model that a checkpoint holds, by clean names."""
    kept = run.model.state_dict()
    held = {name: each for name, each in run.model.named_buffers() if name in kept}
    clean = clean_names(held)
    return {clean[name]: each for name, each in held.items()}


def clean_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by the names that checkpoints use."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    return {clean: named[name] for name, clean in clean_names(named).items()}


def _parameters_of(updates: Updates, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of an optimizer by name."""
    names = parameter_names(updates.optimizer, named)
    return {
        name: parameter
        for group, own in zip(updates.optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], own, strict=True)
    }
