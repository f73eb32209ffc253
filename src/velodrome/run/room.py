"""How much room a run's checkpoints will take, estimated before the first one is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.callbacks.best_checkpoint import BestCheckpoint
from velodrome.checkpoint.scan import find_checkpoints
from velodrome.checkpoint.space import Room, free_bytes, num_kept

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer

    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.run.run import Run

__all__ = ["estimate_room", "measure_room"]


def estimate_room(run: Run) -> Room | None:
    """Return what the run's checkpoints will need; None in a process that writes nothing.

    The weights, their average, and what the optimizers keep: as it is, or before the first update as it will be.
    """
    if run.files.path is None:
        return None
    weights = sum(_bytes(value) for value in run.model.state_dict().values() if isinstance(value, Tensor))
    kept = sum(_state_bytes(updates.optimizer) for updates in run.windows.by_name.values())
    copies = 2 if run.averaging.describe() else 1
    besides = sum(each.keep for each in run.callbacks if isinstance(each, BestCheckpoint))
    return measure_room(run.keeping.policy, run.files.path, copies * weights + kept, besides=besides)


def measure_room(policy: Checkpointing, path: Path, checkpoint_bytes: int, *, besides: int = 0) -> Room:
    """Return what checkpoints of this size need in a run directory, against what its volume has.

    Args:
        policy: which are kept.
        path: of the run directory, which need not exist.
        checkpoint_bytes: of one.
        besides: how many are kept by callbacks, for values of their own.
    """
    saves_once = policy.every is None and not policy.keep_best and not besides
    folder = path / "checkpoints"
    return Room(
        path=path,
        checkpoint_bytes=checkpoint_bytes,
        kept=1 if saves_once else num_kept(policy, kept_besides=besides),
        there=len(find_checkpoints(folder)) if folder.is_dir() else 0,
        free=free_bytes(path),
    )


def _state_bytes(optimizer: Optimizer) -> int:
    held = sum(
        _bytes(value) for state in optimizer.state.values() for value in _values(state) if isinstance(value, Tensor)
    )
    if held:
        return held
    return sum(
        _num_copies(group) * _bytes(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    )


def _num_copies(group: dict[str, Any]) -> int:
    """Return how many numbers an optimizer of torch's keeps for each weight, by its options; 1 of one that is not known."""
    if "betas" in group:
        return 2 + bool(group.get("amsgrad"))
    if "centered" in group:  # RMSprop
        return 1 + bool(group["centered"]) + bool(group.get("momentum"))
    if "rho" in group:  # Adadelta
        return 2
    if "nesterov" in group or "dampening" in group:  # SGD, Muon
        return int(bool(group.get("momentum")))
    return 1


def _values(state: Any) -> Any:
    return state.values() if isinstance(state, dict) else ()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
