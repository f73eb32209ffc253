"""The batched transform of a loader in one epoch: which random numbers each sample of a batch gets."""

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
    from collections.abc import Sequence

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

    def of_rows(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """Return inputs, changed; of several batches at once where they lie in memory.

        Args:
            inputs: shape (samples, ...), a copy of the data.
            rows: indices of the samples, int64, on the same device.
        Raises:
            FetchError: the transform raised something that does not say itself what to do.
            DataError: it did, or gives another number of samples.
        """
        return self._apply(inputs, keys_of_samples(self._key, rows), lambda: rows.tolist())  # SYNC: the run has failed

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
        changed = self._apply(
            inputs, self._keys(inputs, position, indices, by_position=by_position),
            lambda: range(position, position + len(inputs)) if indices is None else indices,
        )  # fmt: skip
        if inputs is batch:
            return changed
        items = (changed, *batch[1:])
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
        return keys.to(inputs.device)

    def _apply(self, inputs: Tensor, keys: Tensor, indices: Any) -> Tensor:
        transform = self._transform
        try:
            changed = transform(inputs, Draws(keys, uniforms(keys, transform.num_draws)))
        except Exception as error:
            self._explain(error, list(indices()))
        if not isinstance(changed, Tensor) or not changed.ndim or len(changed) != len(inputs):
            what = (
                f"a tensor of shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            )
            raise DataError(
                f"{type(transform).__name__} made {what} of {len(inputs)} samples. It must return a tensor whose first dimension is as long."
            )
        return changed

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
