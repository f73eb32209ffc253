"""A world of several processes, over `torch.distributed`."""

from __future__ import annotations

import atexit
import sys
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parameter import is_lazy

from velodrome.distributed.buckets import GradientBuckets
from velodrome.distributed.peers import Peers
from velodrome.distributed.world import sum_by_name
from velodrome.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from torch import Tensor, nn

__all__ = ["ProcessWorld"]

T = TypeVar("T")
_MAX_LAYOUTS = 8
_MAX_BROADCAST_BYTES = 64 << 20


class ProcessWorld:
    """The process group that exists, with a watch over the other processes; see `velodrome.distributed.world.World`.

    Args:
        local_rank: of this process on its machine.
    """

    def __init__(self, *, local_rank: int) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.local_rank = local_rank
        self.is_main = self.rank == 0
        self.waited_s = 0.0
        # Numbers and objects travel from the CPU: where the group has no way to do that (NCCL alone), one is made for it.
        backends = dist.get_backend_config()
        has_cpu = "cpu:gloo" in backends or backends in ("gloo", "mpi")
        self._objects: Any = dist.group.WORLD if has_cpu else dist.new_group(backend="gloo")
        self._layouts: dict[tuple[int, ...], GradientBuckets] = {}
        self._is_closed = False
        abort = _abort if "cuda:nccl" in backends or backends == "nccl" else None
        self._peers = Peers(self.rank, self.size, abort=abort)
        self._previous_hook = sys.excepthook
        sys.excepthook = self._on_uncaught
        atexit.register(self.close)

    @property
    def num_collectives(self) -> int:
        """How many collectives were begun so far; the same in every process."""
        return self._peers.num_collectives

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        """See `World.sum_gradients`."""
        buckets = self._layout(parameters, len(extras))
        buckets.pack(extras)
        with self._together("the sum of the gradients"):
            # All of them begin before the first is waited for; on CUDA the wait is the stream's, not ours.
            works = [self._begin(dist.all_reduce, flat, async_op=True) for flat in buckets.flats]
            for work in works:
                work.wait()
        return buckets.unpack()

    def merge_sums(self, sums: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """See `World.merge_sums`."""
        return sum_by_name(self.gather(dict(sums)))

    def gather(self, value: T) -> list[T]:
        """See `World.gather`."""
        told: list[Any] = [None] * self.size
        with self._together("the exchange of values"):
            self._begin(dist.all_gather_object, told, (type(value).__name__, value), group=self._objects)
        # Processes that took different turns of an `if` would go on with one another's answers to other questions.
        kinds = {kind: rank for rank, (kind, _) in reversed(list(enumerate(told))) if kind != "NoneType"}
        if len(kinds) > 1:
            where = " and ".join(f"a {kind} in rank {rank}" for kind, rank in kinds.items())
            raise WorldError(
                f"The processes are not at the same place: they exchange {where}. All must make the same calls in the same order: look "
                f"for calls that depend on the rank.",
                rank=max(kinds.values()),
            )
        return [value for _, value in told]

    def any(self, flag: bool) -> bool:
        """See `World.any`."""
        number = torch.tensor(int(flag))
        with self._together("the exchange of a flag"):
            self._begin(dist.all_reduce, number, op=dist.ReduceOp.MAX, group=self._objects)
        return bool(number)

    def broadcast_from_main(self, module: nn.Module) -> None:
        """See `World.broadcast_from_main`."""
        self._layouts.clear()  # parameters may have another dtype or place than in the run before
        self._broadcast([*module.parameters(), *module.buffers()])

    def broadcast_buffers(self, module: nn.Module) -> None:
        """See `World.broadcast_buffers`."""
        self._broadcast(list(module.buffers()))

    def barrier(self) -> None:
        """See `World.barrier`."""
        self.any(False)

    def note(self, error: BaseException) -> None:
        """See `World.note`."""
        self._peers.noted = error

    def close(self) -> None:
        """See `World.close`; called when the process ends, too."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._previous_hook
        self._peers.close()
        # Whoever holds a group keeps its threads alive. One that lets go of a tensor while Python ends takes the process down with it.
        self._objects = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _layout(self, parameters: Sequence[nn.Parameter], num_extras: int) -> GradientBuckets:
        key = (num_extras, *map(id, parameters))
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = GradientBuckets(parameters, num_extras=num_extras, rank=self.rank, size=self.size)
            self._layouts[key] = layout
        return layout

    @torch.no_grad()
    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of rank 0, bit for bit, a few collectives for all of them."""
        for group in _grouped(tensors):
            flat = torch.cat([_as_bytes(tensor) for tensor in group])
            with self._together("the broadcast of rank 0's values"):
                self._begin(dist.broadcast, flat, src=0)
            if not self.is_main:
                for tensor, part in zip(group, flat.split([tensor.nbytes for tensor in group]), strict=True):
                    # A copy of the part: its start need not lie where the dtype may begin.
                    tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def _begin(self, collective: Any, *arguments: Any, **options: Any) -> Any:
        self._peers.num_collectives += 1
        return collective(*arguments, **options)

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        """Run a collective; when it fails, say whose fault it is."""
        began = perf_counter()
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises is one, or a child of it
            raise self._peers.explain(error, what) from error
        self.waited_s += perf_counter() - began
        self._peers.noted = None  # whatever it was, the run went on

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        """Remember the error that ends this process, so that `close` leaves it to the others."""
        self.note(error)
        self._previous_hook(kind, error, traceback)


def _grouped(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one device, 64 MB of them at a time; those without data are left out."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_meta or is_lazy(tensor) or not tensor.numel():
            continue
        by_device.setdefault(tensor.device, []).append(tensor)
    for same in by_device.values():
        group: list[Tensor] = []
        num_bytes = 0
        for tensor in same:
            group.append(tensor)
            num_bytes += tensor.nbytes
            if num_bytes >= _MAX_BROADCAST_BYTES:
                yield group
                group, num_bytes = [], 0
        if group:
            yield group


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def _abort() -> None:
    from torch.distributed import distributed_c10d

    distributed_c10d._abort_process_group()
