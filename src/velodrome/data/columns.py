"""Data that lie in memory as whole tensors: gathered by batch, never by sample."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from velodrome.data.transforms.base import Transform

__all__ = ["Columns", "columns_from"]

# One gather for several batches, then views of it: 15 instead of 26 microseconds a batch of 64 MNIST images (two cores).
_CHUNK_BYTES = 1 << 20


class Columns:
    """Tensors of equal length and the shape of the batches made from them: one tensor, a tuple or a dict.

    Args:
        tensors: a tensor, a tuple of tensors or a dict of tensors; the first dimension is the sample.
        name: how to speak of them in messages.
        as_list: hand a batch of several tensors out as a list, as PyTorch's loader does for datasets, not as a tuple.
        transform: what makes the dataset's samples of those that are kept here, where a dataset was recognised; a batched transform.
    Raises:
        ArgumentError: a sparse tensor.
        DataError: no tensor, a tensor without dimensions, or lengths that differ.
    """

    def __init__(
        self,
        tensors: Tensor | tuple[Tensor, ...] | dict[str, Tensor],
        *,
        name: str = "data",
        as_list: bool = False,
        transform: Transform | None = None,
    ) -> None:
        self.tensors = tensors
        self.transform = transform
        self._as_list = as_list
        flat = _flat(tensors)
        if not flat:
            raise DataError(f"{name} holds no tensor. Give (inputs, targets).")
        sparse = next((tensor for tensor in flat if tensor.layout is not torch.strided), None)
        if sparse is not None:
            raise ArgumentError(
                f"{name} holds a sparse tensor ({sparse.layout}), from which no batches can be gathered. Give tensor.to_dense(), or a Dataset that "
                f"makes dense samples."
            )
        if any(tensor.ndim == 0 for tensor in flat):
            raise DataError(
                f"{name} holds a tensor without dimensions. The first dimension of each must count the samples."
            )
        lengths = [tensor.shape[0] for tensor in flat]
        if len(set(lengths)) > 1:
            raise DataError(
                f"{name} holds tensors of {', '.join(map(str, lengths))} samples. All must have the same number.",
                lengths=lengths,
            )
        self.num_samples = lengths[0]
        self._bytes_per_sample = sum(tensor.nbytes for tensor in flat) // max(1, self.num_samples)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in _flat(self.tensors))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return _flat(self.tensors)[0].device

    def to(self, device: torch.device) -> Columns:
        """Return the same columns on the device."""
        if self.device == device:
            return self
        return self._with(lambda tensor: tensor.to(device))

    def select(self, indices: Tensor) -> Columns:
        """Return only these samples, copied."""
        return self._with(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        skip: int = 0,
        change: Callable[[Sequence[Tensor], Tensor, int], Sequence[Tensor]] | None = None,
    ) -> Any:
        """Yield the batches of an epoch; the last one may be short.

        Several batches are gathered by one `index_select` and handed out as parts of the copy, so that changing a batch in
        place never changes the data.

        Args:
            order: sample indices, int64, on the columns' device.
            batch_size: samples a batch.
            skip: batches that are not handed out. Copies begin where they would without: the place of a batch in memory decides
                how a matrix product rounds (seen with 72 bytes a batch), and a run that goes on must round as before.
            change: of the gathered tensors, the indices of their samples and the batch size, before they become batches: several batches are
                changed at once.
        """
        tensors = self.tensors = _map(self.tensors, _without_inference_mode)
        per_chunk = max(1, min(64, _CHUNK_BYTES // max(1, self._bytes_per_sample * batch_size)))
        order, skip = order[skip // per_chunk * per_chunk * batch_size :], skip % per_chunk
        if not len(order):
            return  # a split of nothing is one empty batch
        for rows in order.split(per_chunk * batch_size):
            first, skip = skip, 0
            gathered = _gather(_flat(tensors), rows, batch_size, change)
            if isinstance(tensors, Tensor):
                yield from gathered[0][first:]
                continue
            parts = zip(*[batches[first:] for batches in gathered], strict=True)
            if isinstance(tensors, dict):
                for values in parts:
                    yield dict(zip(tensors, values, strict=True))
            else:
                yield from map(list, parts) if self._as_list else parts

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, as a dataset does."""
        return _map(self.tensors, lambda tensor: tensor[index])

    def _with(self, function: Callable[[Tensor], Tensor]) -> Columns:
        return Columns(_map(self.tensors, function), as_list=self._as_list, transform=self.transform)


def columns_from(data: Any) -> Columns | None:
    """Return columns when the data are a tensor, an array, or a tuple or dict of them; None otherwise."""
    if isinstance(data, (Tensor, numpy.ndarray)):
        return Columns(_tensor(data))
    if isinstance(data, tuple) and data and all(isinstance(item, (Tensor, numpy.ndarray)) for item in data):
        return Columns(tuple(_tensor(item) for item in data))
    if isinstance(data, Mapping) and data and all(isinstance(item, (Tensor, numpy.ndarray)) for item in data.values()):
        return Columns({str(key): _tensor(item) for key, item in data.items()})
    return None


def _gather(
    tensors: Sequence[Tensor],
    rows: Tensor,
    batch_size: int,
    change: Callable[[Sequence[Tensor], Tensor, int], Sequence[Tensor]] | None,
) -> list[tuple[Tensor, ...] | list[Tensor]]:
    """Return these rows of each tensor, copied and changed, in batches.

    Outside of inference mode, even when the first batch of a chunk is asked for inside it: the others may be trained on.
    `unsafe_split` rather than `split`: each batch has a version counter of its own, so that a change of one in place does
    not spoil the backward pass of another; it also takes 5 instead of 9 microseconds for two parts.
    """
    with torch.inference_mode(False):
        gathered: Sequence[Tensor] = [tensor.index_select(0, rows) for tensor in tensors]
        if change is not None:
            gathered = change(gathered, rows, batch_size)
        return [tensor.unsafe_split(batch_size) for tensor in gathered]


def _without_inference_mode(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may read: a copy of one made in inference mode, the tensor itself otherwise."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _tensor(data: Tensor | numpy.ndarray) -> Tensor:
    if isinstance(data, Tensor):
        return data.detach()
    if data.dtype.kind not in "biufc":
        raise DataError(f"an array of dtype {data.dtype} is not numeric. Convert it to numbers first.")
    # ascontiguousarray would turn a single number into an array of one.
    data = numpy.ascontiguousarray(data, dtype=data.dtype.newbyteorder("=")).reshape(data.shape)
    try:
        with warnings.catch_warnings():
            # PyTorch warns about arrays that must not be written to. The columns never are.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(data)
    except TypeError as error:
        raise DataError(
            f"an array of dtype {data.dtype} has no counterpart in PyTorch. Convert it first: array.astype('float64')."
        ) from error


def _flat(tensors: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return list(tensors.values()) if isinstance(tensors, dict) else list(tensors)


def _map(tensors: Any, function: Any) -> Any:
    if isinstance(tensors, Tensor):
        return function(tensors)
    if isinstance(tensors, dict):
        return {key: function(value) for key, value in tensors.items()}
    return tuple(function(value) for value in tensors)
