"""A batched transform as a loader applies it in one epoch: which random numbers each sample of a batch gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from velodrome.data.failures import Failure, list_of
from velodrome.data.randomness import name_of
from velodrome.data.transforms.base import Draws, Transform
from velodrome.data.transforms.counters import key_of_epoch, keys_of_samples, uniforms
from velodrome.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Augmentation"]


class Augmentation:
    """Applies a batched transform, with random numbers that are f(seed, epoch, index).

    Args:
        transform: of inputs.
        seed, epoch: of the order.
    """

    def __init__(self, transform: Transform, *, seed: int, epoch: int) -> None:
        self._transform = transform
        self._key = key_of_epoch(seed, epoch)

    def of_rows(self, columns: Sequence[Tensor], rows: Tensor, batch_size: int) -> Sequence[Tensor]:
        """Return columns, the inputs changed (the first one), and the targets (the last one) too where the transform does; of several batches at
        once where they lie in memory.

        Args:
            columns: shape (samples, ...) each, a copy of the data.
            rows: indices of the samples, int64, on the same device.
            batch_size: samples a batch; the last one may be short.
        Raises:
            FetchError: the transform raised something that does not say itself what to do.
            DataError: it did, or gives another number of samples, or changes targets where there are none.
        """
        keys = keys_of_samples(self._key, rows)
        return self._apply(columns, keys, lambda: rows.tolist(), batch_size)  # SYNC: the run has failed

    def of_batch(self, batch: Any, *, position: int, indices: Sequence[Any] | None, by_position: bool = False) -> Any:
        """Return a batch that was read sample by sample, its input changed.

        Args:
            batch: a tensor, or a tuple or list whose first part is one.
            position: of its first sample in the epoch.
            indices: of its samples; None where they have none, and are known by their position.
            by_position: a sample may come twice in an epoch, and is then changed in two ways.
        Raises:
            DataError: the input is no tensor.
        """
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise DataError(
                f"{type(self._transform).__name__} changes a tensor, or the first part of a tuple, and the batch is a {type(batch).__name__}"
                f"{'' if inputs is batch else f' that begins with a {type(inputs).__name__}'}. Give (inputs, targets), or a function as transform."
            )
        items = self._apply(
            (batch,) if inputs is batch else tuple(batch), self._keys(inputs, position, indices, by_position=by_position),
            lambda: range(position, position + len(inputs)) if indices is None else indices,
        )  # fmt: skip
        if inputs is batch:
            return items[0]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)

    def _keys(self, inputs: Tensor, position: int, indices: Sequence[Any] | None, *, by_position: bool) -> Tensor:
        positions = torch.arange(position, position + len(inputs))
        if indices is None:
            keys = keys_of_samples(self._key, positions)
        else:
            if len(indices) != len(inputs):
                raise DataError(
                    f"A batch of {len(indices)} samples has an input of shape {tuple(inputs.shape)}. {type(self._transform).__name__} gives each "
                    f"sample random numbers of its own: collate_fn must keep one row a sample, or leave the transform out."
                )
            numbers = [index if type(index) is int else _number_of(index) for index in indices]
            keys = keys_of_samples(self._key, torch.tensor(numbers), positions if by_position else None)
        return keys.to(inputs.device)  # SYNC: none where samples are read on the CPU, as they are but for rare datasets

    def _apply(
        self, parts: Sequence[Any], keys: Tensor, indices: Callable[[], Sequence[Any]], batch_size: int | None = None
    ) -> list[Any]:
        """Return the parts of a batch with what the transform changes."""
        transform, inputs = self._transform, parts[0]
        draws = Draws(keys, uniforms(keys, transform.num_draws), batch_size=batch_size)
        changed = list(parts)
        try:
            if transform.changes_targets:
                changed[0], changed[1] = transform.pair(inputs, self._targets(parts), draws)
            else:
                changed[0] = transform(inputs, draws)
        except Exception as error:
            self._explain(error, list(indices()))
        for part in changed[: 1 + transform.changes_targets]:
            if not isinstance(part, Tensor) or not part.ndim or len(part) != len(inputs):
                what = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
                raise DataError(
                    f"{type(transform).__name__} made {what} of {len(inputs)} samples. It must return a tensor whose first dimension is as long."
                )
        return changed

    def _targets(self, parts: Sequence[Any]) -> Tensor:
        """Return the targets of a pair.

        Raises:
            DataError: the batch is no pair of tensors.
        """
        if len(parts) == 2 and isinstance(parts[1], Tensor):
            return parts[1]
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise DataError(
            f"{type(self._transform).__name__} changes inputs together with their targets, and a batch has {len(parts)} parts ({kinds}). It must be "
            f"(inputs, targets), two tensors: give such data, or leave the transform out."
        )

    def _explain(self, error: Exception, indices: list[Any]) -> NoReturn:
        remedy = "Check what it does with whole batches of inputs."
        Failure.of(
            error, f"{type(self._transform).__name__} of {list_of(indices)}", indices, remedy=remedy
        ).raise_here()
        raise AssertionError("raise_here returned") from error


def _number_of(index: Any) -> int:
    """Return a number for an index that is none: from its name, as the random numbers of single samples are."""
    import hashlib

    name = name_of(index)
    if name.lstrip(b"-").isdigit():
        return int(name)
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little", signed=True)
