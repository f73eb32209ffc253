"""Worker processes that are forked cannot use CUDA: said before they are started, with what to do instead."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velodrome.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_forking"]


def check_forking(dataset: Any, num_workers: Any, context: Any) -> None:
    """Refuse a dataset that keeps tensors on a GPU and is to be read by processes that are forked.

    Args:
        dataset: the user's.
        num_workers: of PyTorch's loader.
        context: its `multiprocessing_context`: a name, a context, or None for the system's own way.
    Raises:
        DataError: names the attribute and three ways out.
    Source: PyTorch's note on multiprocessing, "CUDA in multiprocessing": a forked process cannot initialise CUDA again.
    """
    if not isinstance(num_workers, int) or num_workers < 1 or not _forks(context):
        return
    for name, tensor in _tensors_of(dataset):
        if tensor.is_cuda:
            raise DataError(
                f"{type(dataset).__name__}.{name} is a tensor on {tensor.device}, and num_workers={num_workers} forks processes to read it. "
                f"A forked process cannot use CUDA. Keep the data on the CPU (batches are moved for you), read them with num_workers=0, or "
                f'give multiprocessing_context="spawn".',
                name=name,
            )


def _forks(context: Any) -> bool:
    if context is None:
        return multiprocessing.get_start_method(allow_none=False) == "fork"
    return (context if isinstance(context, str) else context.get_start_method()) == "fork"


def _tensors_of(dataset: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among a dataset's attributes, and those in lists, tuples and tables there, as far as the first of each."""
    for name, value in getattr(dataset, "__dict__", {}).items():
        items = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (value,)
        )
        first = next(iter(items), None)
        if isinstance(first, Tensor):
            yield name, first
