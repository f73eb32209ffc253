"""Numbers that people give about an update: its micro-batches, and what a loss is a mean over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from velodrome.errors import ArgumentError, nearest_divisors

__all__ = ["check_accumulate", "check_items", "num_micro_batches"]


def check_accumulate(accumulate: object) -> int:
    """Return the number of micro-batches an update.

    Raises:
        ArgumentError: it is no whole number of at least 1.
    """
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ArgumentError(
            f"accumulate={accumulate!r} is not a number of micro-batches. It must be a whole number of at least 1."
        )
    return accumulate


def check_items(items: object) -> Tensor | float:
    """Return what the user says a loss is a mean over.

    Raises:
        ArgumentError: it is neither a number of at least 0 nor a tensor with one number.
    """
    if isinstance(items, Tensor):
        if items.numel() != 1 or items.dtype is torch.bool:
            raise ArgumentError(
                f"items is a {items.dtype} tensor of shape {tuple(items.shape)}. A mean is over one number of items: take their sum()."
            )
        return items.detach().reshape(())
    try:
        number = float(items)  # type: ignore[arg-type]  # SYNC: never, no tensor of torch
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(items, bool) or not 0 <= number < math.inf:
        raise ArgumentError(
            f"items={items!r} is no number of items. It must be a number of at least 0, or a tensor with one."
        )
    return number


def num_micro_batches(batch_size: int | None, micro_batch: int, *, processes: int = 1) -> int:
    """Return how many micro-batches make a batch: with several processes the fewest of equal size that fit into each.

    Raises:
        ArgumentError: no batch size, a number that is none, or one that is no multiple.
    """
    if batch_size is None:
        raise ArgumentError(
            f"micro_batch={micro_batch} was given without batch_size, the samples an update. Give both; for data that make their "
            f"own batches give the trainer accumulate= instead."
        )
    for name, size in (("batch_size", batch_size), ("micro_batch", micro_batch)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArgumentError(f"{name}={size!r} is not a batch size. It must be a whole number of at least 1.")
    if batch_size % micro_batch:
        near = " or ".join(map(str, nearest_divisors(batch_size, micro_batch)))
        raise ArgumentError(
            f"micro_batch={micro_batch} does not divide batch_size={batch_size} ({batch_size} % {micro_batch} = {batch_size % micro_batch}). "
            f"Use {near}."
        )
    count = -(-batch_size // (micro_batch * processes))
    while batch_size % count:
        count += 1
    return count
