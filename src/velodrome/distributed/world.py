"""The world: the processes that train one model together. One process is a world of size 1, and costs nothing.

Gradients are summed here, once an update, rather than by torch's `DistributedDataParallel`, which the model is not wrapped in:

- The number of items travels with the gradients, so that the sum is divided by the items of all processes: exact for
  micro-batches and shards of unequal size, and without a collective of its own. DDP averages over processes.
- Nothing is sent inside an accumulation window, whatever runs backward in it (several losses, a `step_fn`, a loop of one's own).
- A process whose data are used up takes part with zeros; DDP would hang.
- Names of parameters stay clean, hooks and attributes of the model stay reachable.

What is given up: DDP overlaps its sums with the rest of the backward pass. Here they begin when the backward pass is over.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from velodrome.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

__all__ = ["SINGLE", "World", "join_world", "local_device"]

T = TypeVar("T")
_TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_S = 600.0
"""how long a collective may wait for a process that is alive: an evaluation of one process alone, or a slow first step"""


class World(Protocol):
    """The processes of a run. All of them call the same methods in the same order, except `note` and the properties."""

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def local_rank(self) -> int:
        """Which of the processes on this machine this is, from 0."""
        ...

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress: rank 0."""
        ...

    @property
    def waited_s(self) -> float:
        """How long this process has waited in collectives so far; on CUDA only where the host waits."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        """Sum gradients over all processes in place, and return the sum of `extras`, which travels with them.

        A parameter without gradient counts as zero; one that has none in any process keeps None.

        Args:
            parameters: the same ones in the same order everywhere; frozen ones left out.
            extras: float64, one dimension, on the parameters' device, of equal length everywhere: items seen, flags.
        Returns:
            A new float64 tensor: the sums, exact to the last bit of float64, the same in every process.
        Raises:
            WorldError: a process is gone or failed.
            ArgumentError: a gradient is sparse.
        Cost: one all-reduce for every 25 MB of gradients, and a second copy of them in memory. Waits for the device only where
        this process has no gradient for some parameter.
        """
        ...

    def merge_sums(self, sums: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """Return element-wise sums by name, over all processes; a name may be missing in some."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank; anything that can be pickled, tensors on the CPU."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        ...

    def broadcast_from_main(self, module: nn.Module) -> None:
        """Overwrite parameters and buffers by those of rank 0."""
        ...

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Overwrite buffers, such as the statistics of BatchNorm, by those of rank 0."""
        ...

    def barrier(self) -> None:
        """Wait until every process is here."""
        ...

    def note(self, error: BaseException) -> None:
        """Remember an error: when it ends this process, the others are told it. Any collective after it forgets it."""
        ...

    def close(self) -> None:
        """Leave: tell the others whether in good order, and free what was made for it."""
        ...


class _SingleWorld:
    """A world of one process: sums are what they were."""

    rank = 0
    size = 1
    local_rank = 0
    is_main = True
    waited_s = 0.0

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        return extras

    def merge_sums(self, sums: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return dict(sums)

    def gather(self, value: T) -> list[T]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_from_main(self, module: nn.Module) -> None:
        pass

    def broadcast_buffers(self, module: nn.Module) -> None:
        pass

    def barrier(self) -> None:
        pass

    def note(self, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass


SINGLE: World = _SingleWorld()

# torch's process group belongs to the process as a whole, so there is one world to a process too: trainers share it.
_joined: World | None = None


def join_world(device: torch.device) -> World:
    """Return the world that this process belongs to: that of `torchrun`, or of a process group that was made before.

    Without either it is `SINGLE`. Trainers of one process share one world. Gloo on the CPU; NCCL on CUDA with one process a
    GPU, and Gloo where several share one.

    Args:
        device: where this process computes, see `local_device`.
    Raises:
        WorldError: torchrun's variables make no sense, the processes did not find one another, or the device has no collectives.
    """
    global _joined
    if not dist.is_available():
        return SINGLE
    if dist.is_initialized():
        if dist.get_world_size() == 1:
            return SINGLE
    else:
        place = _place_from_environment()
        if place is None or place[1] == 1:
            return SINGLE
        _make_process_group(device, *place)
        _joined = None  # of a process group that was destroyed
    if _joined is None:
        from velodrome.distributed.process_world import ProcessWorld

        _joined = ProcessWorld(local_rank=_local_rank())
    return _joined


def local_device(device: Any) -> Any:
    """Return the device that one process of several on a machine shall take when no number was given: that of its local rank.

    Args:
        device: as given to a trainer: "auto", "cuda", "cuda:1", "cpu", ...
    """
    place = _place_from_environment()
    if place is None or place[1] == 1 or not torch.cuda.is_available():
        return device
    wants_any = device == "auto" or (str(device).startswith("cuda") and torch.device(device).index is None)
    return f"cuda:{_local_rank() % torch.cuda.device_count()}" if wants_any else device


def _make_process_group(device: torch.device, rank: int, size: int) -> None:
    from datetime import timedelta

    backend = "gloo"
    if device.type not in ("cpu", "cuda"):
        raise WorldError(
            f"{size} processes were started, and this one is to compute on {device}. Several processes train together on the CPU or on "
            f'CUDA: use device="cpu", or start one.',
            rank=rank,
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # NCCL wants a GPU to itself in each process. Objects travel over Gloo either way.
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        has_own = local_size <= torch.cuda.device_count() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if has_own else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S), rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"Process {rank} of {size} did not find the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {error}. "
            f"Each process must be started, with the same address. `torchrun` and `velodrome train --processes` see to that.",
            rank=rank,
        ) from error


def _place_from_environment() -> tuple[int, int] | None:
    """Return rank and world size as torchrun set them, or None where this process was not started by it."""
    if any(name not in os.environ for name in _TORCHRUN_NAMES):
        return None
    given = f"RANK={os.environ['RANK']}, WORLD_SIZE={os.environ['WORLD_SIZE']}"
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise WorldError(
            f"The environment says {given}, which is no place among processes. RANK must be from 0 to WORLD_SIZE - 1: "
            f"start the program with torchrun, or unset both."
        )
    return rank, size


def _local_rank() -> int:
    rank = int(os.environ.get("RANK", "0")) if not dist.is_initialized() else dist.get_rank()
    return int(os.environ.get("LOCAL_RANK", rank % max(1, torch.cuda.device_count())))


def sum_by_name(parts: Iterable[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Return element-wise sums by name; a name may be missing in some parts."""
    total: dict[str, list[float]] = {}
    for part in parts:
        for name, numbers in part.items():
            known = total.get(name)
            total[name] = list(numbers) if known is None else [a + b for a, b in zip(known, numbers, strict=True)]
    return total
