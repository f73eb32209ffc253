"""What the finders share: a trainer that writes nothing, and everything put back as it was."""

from __future__ import annotations

import copy
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from velodrome.data.position import LoaderPosition
from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

__all__ = ["LEFT_OUT", "WRITES", "ModelKept", "check_number", "own_arguments", "position_kept"]

LEFT_OUT = (
    "scheduler",
    "scheduler_args",
    "scheduler_every",
    "scheduler_monitor",
    "ema",
    "compile",
    "engine",
    "stop_after",
    "callbacks",
)
"""arguments of a trainer that a finder leaves out: they belong to a whole training"""

WRITES = ("run_dir", "resume", "checkpoint", "loggers")
"""arguments of a trainer that have it write something"""


def check_number(name: str, value: object) -> None:
    """Refuse an argument that is no number.

    Raises:
        ArgumentError: it is a text, None, or something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentError(f"{name}={value!r} is a {type(value).__name__}. It must be a number: leave quotes out.")


def own_arguments(trainer_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a finder's own trainer: those given, without what belongs to a whole training or decides what is written.

    Raises:
        ArgumentError: no trainer knows one, or it would write something.
    """
    from velodrome.trainer import Trainer

    known = set(inspect.signature(Trainer.__init__).parameters) - {"self", "model"}
    for name in trainer_arguments:
        if name not in known:
            raise ArgumentError(
                f"{name}={trainer_arguments[name]!r} is an argument of neither the finder nor Trainer. {nearest(name, known)}"
            )
    for name in WRITES:
        if trainer_arguments.get(name) is not None:
            raise ArgumentError(
                f"{name}={trainer_arguments[name]!r} was given, and a finder writes nothing. Leave it out."
            )
    return {name: each for name, each in trainer_arguments.items() if name not in (*LEFT_OUT, *WRITES, "progress")}


@dataclass(frozen=True)
class ModelKept:
    """What a trainer changes about a model besides its numbers."""

    model: nn.Module
    trains: dict[nn.Parameter, tuple[bool, Tensor | None]]
    strides: dict[str, tuple[int, ...]]

    @classmethod
    def take(cls, model: nn.Module) -> ModelKept:
        """Note it, and take gradients that are there aside: the test frees its own."""
        trains = {each: (each.requires_grad, each.grad) for each in model.parameters()}
        strides = {
            name: each.stride() for name, each in _parts(model) if each.layout is torch.strided and not is_lazy(each)
        }
        for parameter in trains:
            parameter.grad = None
        return cls(model, trains, strides)

    def put_back(self) -> None:
        """Put back which parameters train, their gradients, and the order of numbers in memory (channels_last)."""
        for name, tensor in _parts(self.model):
            strides = self.strides.get(name)
            if strides is not None and tensor.stride() != strides:
                own = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
                tensor.data = own.copy_(tensor.detach())
        for parameter, (was_trained, gradient) in self.trains.items():
            parameter.requires_grad_(was_trained)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


def _parts(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def position_kept(data: Any) -> Iterator[None]:
    """Put the place of a loader back where it was, and the generator that it draws from.

    Raises:
        DataError: the data are an iterator, which cannot be put back.
    """
    if hasattr(data, "__next__"):
        raise DataError(
            f"The data are a {type(data).__name__}, an iterator, which the test would use up. Give a loader, a list of batches, or a dataset."
        )
    before = None
    if type(data).__module__.startswith("velodrome.") and hasattr(data, "set_epoch"):
        before = {
            name: copy.copy(each) if isinstance(each, LoaderPosition) else each for name, each in vars(data).items()
        }
    generator: Any = getattr(data, "generator", None)  # Any: torch.Generator, where there is one
    state = generator.get_state() if hasattr(generator, "get_state") else None
    try:
        yield
    finally:
        if before is not None:
            vars(data).update(before)
        if state is not None:
            generator.set_state(state)
