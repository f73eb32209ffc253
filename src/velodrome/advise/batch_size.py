"""Which batch size? The largest that memory takes, and the smallest that is about as fast as any.

Both are about speed and memory only: another batch size is another training, with another best learning rate.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from velodrome.advise.finders import check_number, own_arguments
from velodrome.advise.memory import process_peak_bytes
from velodrome.advise.samples import num_samples
from velodrome.data.loader import DataLoader
from velodrome.devices import resolve_device
from velodrome.errors import ArgumentError, DataError, OutOfMemoryError
from velodrome.free_memory import available_bytes
from velodrome.seeding import random_state_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

__all__ = ["BatchSizes", "MeasuredSize", "find_batch_size"]

_SHARE_OF_MEMORY = 0.8  # of what is free: other programs want some of it too
_PLATEAU = 0.95  # of the best throughput
_WARM_UP_STEPS = 2
_LEAST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class MeasuredSize:
    """What a batch size gave."""

    batch_size: int
    samples_per_s: float
    memory_bytes: int | None
    """peak of the device on CUDA; what the process has grown by since the first size elsewhere; None where nothing tells"""


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """The batch sizes that were tried, and why no larger one was."""

    measured: tuple[MeasuredSize, ...]
    limit: str
    """why it ended at the largest one"""

    @property
    def largest(self) -> int:
        """The largest power of two that ran."""
        return self.measured[-1].batch_size

    @property
    def fastest(self) -> int:
        """The smallest one with at least 95 % of the best throughput."""
        best = max(each.samples_per_s for each in self.measured)
        return next(each.batch_size for each in self.measured if each.samples_per_s >= _PLATEAU * best)

    @property
    def sentence(self) -> str:
        """What came out, for people."""
        speeds = {each.batch_size: each.samples_per_s for each in self.measured}
        return (
            f"{self.fastest} is as fast as any ({speeds[self.fastest]:,.0f} samples/s; {self.largest}: {speeds[self.largest]:,.0f}); "
            f"the largest that was run is {self.largest}: {self.limit}. Another batch size is another training: look for its learning rate anew."
        )


def find_batch_size(
    model: nn.Module,
    train: Any,
    *,
    largest: int | None = None,
    seconds_each: float = 0.5,
    memory_share: float = _SHARE_OF_MEMORY,
    loader_args: Mapping[str, Any] | None = None,
    **trainer_arguments: Any,
) -> BatchSizes:
    """Train a few steps with batches of 1, 2, 4, ... samples, until memory ends, or the data do.

    It is done on copies of the model and the optimizer; random numbers are put back. On CUDA the end of memory is found by reaching it. On
    a CPU, where reaching it would end the process or others, it is foreseen: the next size is run only if what the last doubling took,
    doubled, is less than `memory_share` of what is free.

    Args:
        model: is copied.
        train: tensors or a dataset.
        largest: no batch is larger; the number of samples when left out.
        seconds_each: of training with each size, about.
        memory_share: of the free memory that batches may take.
        loader_args: further arguments of the `DataLoader` that cuts the batches: a transform, workers.
        trainer_arguments: those of `Trainer`; schedule, average, compilation and callbacks are left out.
    Returns:
        Throughput and memory of each size; the largest one that ran, and the one where the throughput is on its plateau.
    Raises:
        ArgumentError: an argument is wrong, or the data bring batches of their own.
        OutOfMemoryError: not even the smallest batch fits.
        DataError: the data cannot be trained on.
    """
    total = _num_samples(train)
    if largest is not None and (isinstance(largest, bool) or not isinstance(largest, int) or largest < 1):
        raise ArgumentError(
            f"largest={largest!r} is no batch size. It must be a whole number of at least 1; leave it out to go up to the number of samples."
        )
    check_number("seconds_each", seconds_each)
    if not (0 < seconds_each < math.inf):
        raise ArgumentError(f"seconds_each={seconds_each!r} is no time to train for. It must be above 0, such as 0.5.")
    check_number("memory_share", memory_share)
    if not 0 < memory_share <= 1:
        raise ArgumentError(f"memory_share={memory_share!r} is no share. It must be above 0 and at most 1.")
    own = own_arguments(trainer_arguments)
    if own.get("on_oom") == "split":
        own["on_oom"] = "stop"  # a batch that is cut into pieces does not fit, which is what is asked here
    most = min(total, largest or total)
    device = resolve_device(own.get("device", "auto"))
    measured: list[MeasuredSize] = []
    limit = f"the data have {total:,} samples" if most == total else f"largest={most} was asked for"
    before, free = process_peak_bytes(), memory_share * available_bytes(device)
    with random_state_kept(device):
        size = 1
        while size <= most:
            try:
                found = _measure(model, train, size, seconds_each, dict(own), dict(loader_args or {}), before, device)
            except OutOfMemoryError as error:
                if not measured:
                    raise
                limit = f"memory ended at {size} ({str(error.__cause__ or error).splitlines()[0]})"
                break
            except DataError:
                if size > 1 or size == most:
                    raise
                size *= 2  # BatchNorm cannot train on one sample
                continue
            measured.append(found)
            if device.type != "cuda" and _would_not_fit(measured, free):
                limit = f"{2 * size} would take more than {100 * memory_share:.0f} % of the memory that is free"
                break
            size *= 2
    return BatchSizes(measured=tuple(measured), limit=limit)


def _measure(
    model: nn.Module,
    train: Any,
    size: int,
    seconds: float,
    arguments: dict[str, Any],
    loader_arguments: dict[str, Any],
    before: int | None,
    device: torch.device,
) -> MeasuredSize:
    """Train copies with batches of one size."""
    from velodrome.trainer import Trainer

    optimizer: Optimizer | Any = arguments.pop("optimizer", "adam")
    if isinstance(optimizer, torch.optim.Optimizer):
        model, optimizer = copy.deepcopy(
            (model, optimizer)
        )  # together, so that the one holds the parameters of the other
    else:
        model = copy.deepcopy(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(model, optimizer, progress=False, checkpoint=None, loggers=(), **arguments)
    loader = DataLoader(train, size, **{"shuffle": True, "seed": 0, **loader_arguments, "drop_last": True})
    trainer.fit(loader, steps=_WARM_UP_STEPS)
    samples_before = trainer.progress.samples_done
    steps, spent = 0, 0.0
    while steps < _LEAST_STEPS or spent < seconds:
        rate = steps / spent if spent else 0.0
        more = max(_LEAST_STEPS, min(1000, int(rate * (seconds - spent))))
        begun = perf_counter()
        trainer.fit(loader, steps=trainer.progress.steps_done + more)  # it ends with a wait: the loss is read
        spent += perf_counter() - begun
        steps += more
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    used = process_peak_bytes()
    if device.type == "cpu" and used is not None and before is not None:
        memory = max(0, used - before)
    samples = trainer.progress.samples_done - samples_before  # not steps * size: an update may take several batches
    return MeasuredSize(batch_size=size, samples_per_s=samples / spent, memory_bytes=memory)


def _would_not_fit(measured: list[MeasuredSize], free: float) -> bool:
    """Return whether twice the last batch is foreseen to take more than there is: its growth is at most twice the last one's total."""
    taken = measured[-1].memory_bytes
    return taken is not None and 2 * taken > free


def _num_samples(train: Any) -> int:
    total = len(train) if isinstance(train, torch.Tensor) else num_samples(train)
    if total is None:
        raise ArgumentError(
            f"train is a {type(train).__name__}, which brings batches of its own size. Give the tensors or the dataset that they are cut from."
        )
    if total == 0:
        raise DataError(
            "The data have 0 samples. A batch needs at least one: check their path, split and filters.", num_samples=0
        )
    return total
