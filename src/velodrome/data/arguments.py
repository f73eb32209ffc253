"""What `velodrome.DataLoader` may be called with: every argument is looked at, also where the data's path has no use for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_combination", "check_names"]

_TORCH_ARGUMENTS = (
    "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor", "persistent_workers",
    "pin_memory_device", "in_order",
)  # fmt: skip


def check_names(arguments: Iterable[str], *, own: Iterable[str]) -> None:
    """Refuse what is not PyTorch's; data in memory would otherwise swallow a misspelt name."""
    for name in arguments:
        if name not in _TORCH_ARGUMENTS:
            raise ArgumentError(f"DataLoader has no argument {name!r}. {nearest(name, [*_TORCH_ARGUMENTS, *own])}")


def check_combination(
    dataset: Any,
    batch_size: int | None,
    *,
    shuffle: bool | None,
    drop_last: bool,
    sampler: object,
    batch_sampler: object,
) -> None:
    """Refuse arguments that exclude one another, as PyTorch does."""
    if shuffle and (sampler is not None or batch_sampler is not None):
        raise ArgumentError(
            "shuffle=True and a sampler were both given. A sampler decides the order itself: leave shuffle out."
        )
    if batch_sampler is not None and (batch_size not in (None, 1) or sampler is not None or drop_last):
        raise ArgumentError(
            "A batch_sampler was given together with batch_size, sampler or drop_last. It makes whole batches itself: leave the others out."
        )
    if batch_size is None and batch_sampler is None and drop_last:
        raise ArgumentError(
            "drop_last=True and batch_size=None were both given. Without batches none is short: leave drop_last out."
        )
    if isinstance(dataset, IterableDataset) and (shuffle or sampler is not None or batch_sampler is not None):
        raise ArgumentError(
            f"{type(dataset).__name__} is an IterableDataset, whose order is its own. Leave shuffle, sampler and batch_sampler out."
        )
