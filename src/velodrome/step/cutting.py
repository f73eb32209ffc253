"""A batch cut into parts of fewer samples, and what the parts gave put together again.

Only where it is plain which dimension counts samples: a wrong cut would change the numbers in silence, so doubt is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CannotCut", "count_samples", "cut", "even_sizes", "join"]


class CannotCut(MemoryError):
    """Memory ran out, and the batch cannot be cut into parts; the text says why."""


def count_samples(batch: Any) -> int:
    """Return the samples of a batch that can be cut: the first dimension of all its tensors.

    Raises:
        CannotCut: they differ in it, or the batch holds something whose samples are not known.
    """
    lengths = {len(tensor) for tensor in _tensors(batch, is_top=True)}
    if not lengths:
        raise CannotCut("The batch holds no tensor with samples, so it cannot be split.")
    if len(lengths) > 1:
        raise CannotCut(
            f"The tensors of the batch have {', '.join(map(str, sorted(lengths)))} as their first dimension: which of them counts samples "
            f"is not said, so it cannot be split."
        )
    return lengths.pop()


def even_sizes(samples: int, largest: int) -> list[int]:
    """Return the sizes of as few parts as there must be, equal up to one sample: no part is a small rest, which BatchNorm would feel."""
    num_parts = -(-samples // largest)
    size, longer = divmod(samples, num_parts)
    return [size + 1] * longer + [size] * (num_parts - longer)


def cut(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Return the batch in parts of these sizes; what has no samples, a number or a name, is in each of them.

    Args:
        batch: that `count_samples` took; the parts' tensors are views of its.
        sizes: samples of each part.
    """
    samples, parts, start = sum(sizes), [], 0
    for size in sizes:
        parts.append(_slice(batch, start, start + size, samples))
        start += size
    return parts


def join(parts: Sequence[Any], sizes: Sequence[int], *, like: Sequence[Any] | None = None) -> Any:
    """Return as one what the parts of a batch gave: tensors one after the other, numbers as their mean over samples.

    Args:
        parts: outputs, however nested, or None.
        sizes: samples of each part.
        like: the parts' targets, or for targets the outputs: what has as many rows as these need not have one for each sample.
    Raises:
        CannotCut: an output has no row for each sample.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        if not first.ndim:
            weights = torch.tensor(sizes, dtype=torch.float64)
            stacked = torch.stack([part.detach() for part in parts])
            dtype = stacked.dtype if stacked.is_floating_point() else torch.get_default_dtype()
            return (stacked.to(dtype) * (weights / weights.sum()).to(stacked.device, dtype)).sum()
        for index, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            rows = size if like is None or not isinstance(like[index], Tensor) else len(like[index])
            if len(part) not in (size, rows) or part.shape[1:] != first.shape[1:]:
                raise CannotCut(
                    f"The model returned {tuple(part.shape)} for {size} samples: without a row for each, what parts of a batch give cannot be "
                    f"put together, so it cannot be split."
                )
        return torch.cat([part.detach() for part in parts])
    if isinstance(first, Mapping):
        joined = {key: join([part[key] for part in parts], sizes, like=like) for key in first}
        return joined if type(first) is dict else _rebuilt(first, joined)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(join(list(each), sizes, like=like) for each in zip(*parts, strict=True)))
    if isinstance(first, (tuple, list)) and all(len(part) == len(first) for part in parts):
        if any(isinstance(each, (Tensor, Mapping, tuple, list)) for each in first):
            return type(first)(join(list(each), sizes, like=like) for each in zip(*parts, strict=True))
        return type(first)(each for part in parts for each in part)
    return first


def _tensors(batch: Any, *, is_top: bool = False) -> Iterator[Tensor]:
    """Yield the tensors that have samples.

    Raises:
        CannotCut: a part of the batch is of a kind whose samples are not known.
    """
    if isinstance(batch, Tensor):
        if batch.is_nested or batch.layout != torch.strided:
            raise CannotCut("The batch holds a nested or sparse tensor, which cannot be split.")
        if batch.ndim:
            yield batch
    elif isinstance(batch, PackedSequence) or (callable(getattr(batch, "to", None)) and not isinstance(batch, Mapping)):
        raise CannotCut(f"The batch holds a {type(batch).__name__}, which cannot be split.")
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, (tuple, list)):
        if not is_top and isinstance(batch, list) and any(isinstance(part, Mapping) for part in batch):
            raise CannotCut("The batch holds a list of dicts, one for each sample, which cannot be split.")
        tensors = [tensor for part in batch for tensor in _tensors(part)]
        if not is_top and tensors and any(len(tensor) == len(batch) for tensor in tensors) and len(batch) > 2:
            raise CannotCut(
                f"The batch holds a {type(batch).__name__} of {len(batch)} tensors, some with {len(batch)} as their first dimension: whether "
                f"it has one for each sample is not said, so it cannot be split."
            )
        yield from tensors


def _slice(batch: Any, start: int, stop: int, samples: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.ndim else batch
    if isinstance(batch, Mapping):
        sliced = {key: _slice(value, start, stop, samples) for key, value in batch.items()}
        return sliced if type(batch) is dict else _rebuilt(batch, sliced)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_slice(part, start, stop, samples) for part in batch))
    if isinstance(batch, (tuple, list)):
        if len(batch) == samples and _is_column(batch):
            return batch[start:stop]
        return type(batch)(_slice(part, start, stop, samples) for part in batch)
    return batch


def _is_column(batch: tuple[Any, ...] | list[Any]) -> bool:
    """Return whether a sequence has one entry a sample, as torch's collation leaves names; what holds tensors is a nesting."""
    if isinstance(batch, tuple):
        return all(isinstance(part, (str, bytes)) for part in batch)
    return not any(isinstance(part, (Tensor, Mapping, tuple, list)) for part in batch)


def _rebuilt(like: Any, values: dict[Any, Any]) -> Any:
    """Return a mapping of the same type where one can be made from a dict."""
    try:
        return type(like)(values)
    except TypeError:
        return values
