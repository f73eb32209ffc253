"""Recording on the CPU as a device does it: the operations are kept, with the memory that they had, and Python is not run again."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from velodrome.testing.replayer import Replayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TapeReplayer"]

_WAITS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")
_NOT_OURS = (str(Path(torch.__file__).parent), str(Path(__file__)), "contextlib.py")
# torch's operations write to these without saying so in their signature.
_WRITTEN_IN_SECRET = ("running_mean", "running_var")


class TapeReplayer(Replayer):
    """Stands in for CUDA graphs on the CPU, more strictly than `Replayer`: `Trainer(engine=TapeReplayer())`.

    Numbers of Python are constants of the recording, and tensors are the memory that they were, whatever has become of the
    objects. So what a graph would freeze is frozen here, and a recording that has gone stale trains stale memory. Random numbers
    come from the generator's present state, as they do on a device. What makes a device wait is found, and named.

    Cost: every intermediate result of a step is kept; a replay is slower than the step.
    """

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Keep the operations of some work, and leave everything as it was."""
        self.num_recorded += 1
        tape, random = _Tape(), torch.get_rng_state()
        try:
            with tape:
                work()
        finally:
            tape.undo()
            torch.set_rng_state(random)

        def replay() -> None:
            self.num_replayed += 1
            tape.play()

        return replay

    @contextmanager
    def noting_waits(self) -> Iterator[list[str]]:
        """Note each operation that hands a value to Python, with the line that asked for it."""
        watch = _Waits()
        with watch:
            yield watch.found


class _Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _WAITS:
            frames = [each for each in traceback.extract_stack() if not each.filename.endswith(_NOT_OURS)]
            frames = [each for each in frames if not each.filename.startswith(_NOT_OURS[0])]
            self.found.append(f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "torch itself")
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    """Operations below autograd: those of the backward pass and of fused optimizers are among them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        for tensor in written:
            self._keep(tensor)
        result = func(*args, **kwargs)
        given = {_memory(each) for each in _tensors((args, kwargs))}
        # None where the result is memory that was there before: a view, or what was written to in place.
        results = [None if _memory(each) in given else each.detach() for each in _tensors(result)]
        if written or any(each is not None for each in results):
            held_args, held_kwargs = _pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self._calls.append((func, held_args, held_kwargs, results))
            self._made.update(_memory(each) for each in results if each is not None)
        return result

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if _memory(tensor) not in self._made:
            self._before.setdefault(_memory(tensor), (storage, storage.clone()))

    def undo(self) -> None:
        """Give all memory that was there before the recording what it had."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    def play(self) -> None:
        """Do it again: the same operations on the same memory."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # its casts are on the tape
            for func, args, kwargs, results in self._calls:
                found = func(*args, **kwargs)
                for own, new in zip(results, _tensors(found), strict=True):
                    if own is not None:
                        own.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in _pytree.tree_leaves(values) if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    found = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written or argument.name in _WRITTEN_IN_SECRET:
            found += _tensors(value)
    return found
