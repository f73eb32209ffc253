"""Gradients laid out in a few flat tensors, with what travels beside them: who has a gradient, and numbers to be summed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["GradientBuckets"]

_MAX_BYTES = 25 << 20


@dataclass
class _Bucket:
    """Parameters of one dtype on one device, and a flat tensor: their gradients, a flag each, and perhaps extras."""

    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor] = field(default_factory=list)
    flags: Tensor = field(default_factory=lambda: torch.empty(0))
    pattern: list[bool] = field(default_factory=list)
    template: Tensor = field(default_factory=lambda: torch.empty(0))
    """what `flags` is set to for `pattern`"""


class GradientBuckets:
    """Packs gradients into flat tensors that are to be summed over processes, and puts the sums back.

    Extras are float64 and must come back exact. A bucket of float64 takes them as they are. In one of float32 each process
    writes its own slot, each number as three float32 whose sum it is (24 bits each, of 53), where the others add zeros: what
    comes out is every process's number, which float64 then adds up in the order of ranks. Where all gradients are narrower
    they get a tensor of their own.

    Args:
        parameters: in an order that is the same in every process.
        num_extras: how many numbers travel along.
        rank, size: of this process, of the world.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, num_extras: int, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._num_extras = num_extras
        self._missing: list[tuple[_Bucket, int]] = []
        groups = list(_grouped(parameters))
        dtypes = [group[0].dtype for group in groups]
        carrier = next((dtype for dtype in (torch.float64, torch.float32) if dtype in dtypes), None)
        index = dtypes.index(carrier) if carrier is not None else -1
        self._buckets = [
            _make_bucket(group, room=self._extra_room(group[0].dtype) if place == index else 0)
            for place, group in enumerate(groups)
        ]
        self._carrier = self._buckets[index].flat if carrier is not None else None
        self._own_extras: Tensor | None = None

    @property
    def flats(self) -> list[Tensor]:
        """The tensors to be summed over all processes, filled by `pack`."""
        flats = [bucket.flat for bucket in self._buckets]
        return flats if self._own_extras is None else [*flats, self._own_extras]

    def pack(self, extras: Tensor) -> None:
        """Copy gradients and extras into the flat tensors; waits for nothing.

        Raises:
            ArgumentError: a gradient is sparse.
        """
        self._missing.clear()
        for bucket in self._buckets:
            pattern = [parameter.grad is not None for parameter in bucket.parameters]
            gradients = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
            if any(gradient.is_sparse for gradient in gradients):
                raise ArgumentError(
                    f"A gradient of shape {tuple(next(g.shape for g in gradients if g.is_sparse))} is sparse, which several processes "
                    f"cannot sum here. Make the embedding with sparse=False."
                )
            if len(gradients) == len(bucket.views):
                _copy(bucket.views, gradients)
            else:
                _copy([view for view, has in zip(bucket.views, pattern, strict=True) if has], gradients)
                absent = [index for index, has in enumerate(pattern) if not has]
                for index in absent:
                    bucket.views[index].zero_()
                self._missing.extend((bucket, index) for index in absent)
            if pattern != bucket.pattern:
                bucket.pattern = pattern
                bucket.template = torch.tensor(pattern, device=bucket.flat.device).to(bucket.flat.dtype)
            bucket.flags.copy_(bucket.template)
        self._pack_extras(extras)

    def unpack(self) -> Tensor:
        """Put the sums back into the gradients, and return the sums of the extras.

        Cost: waits for the device where a parameter had no gradient in this process, to learn whether another had one.
        """
        for bucket in self._buckets:
            present = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
            if len(present) == len(bucket.views):
                _copy(present, bucket.views)
            else:
                _copy(present, [view for view, has in zip(bucket.views, bucket.pattern, strict=True) if has])
        if self._missing:
            # Two buckets at most are read for nothing: parameters without gradient are rare, or all of them.
            buckets = list({id(bucket): bucket for bucket, _ in self._missing}.values())
            # A gradient of zeros is not the same as none: with it momentum and weight decay go on.
            counts = {id(bucket): bucket.flags.tolist() for bucket in buckets}  # SYNC: only where a gradient is missing
            for bucket, index in self._missing:
                if counts[id(bucket)][index]:
                    parameter = bucket.parameters[index]
                    parameter.grad = torch.empty_like(parameter.detach()).copy_(bucket.views[index])
        return self._unpack_extras()

    def _extra_room(self, dtype: torch.dtype) -> int:
        return self._num_extras if dtype == torch.float64 else 3 * self._num_extras * self._size

    def _pack_extras(self, extras: Tensor) -> None:
        carrier = self._carrier
        if carrier is None:
            self._own_extras = extras.clone()
            return
        room = carrier[-self._extra_room(carrier.dtype) :] if self._num_extras else carrier[:0]
        if carrier.dtype == torch.float64:
            room.copy_(extras)
            return
        room.zero_()
        high = extras.to(torch.float32)
        rest = extras - high
        middle = rest.to(torch.float32)
        low = (rest - middle).to(torch.float32)
        room.view(self._size, 3, self._num_extras)[self._rank].copy_(torch.stack((high, middle, low)))

    def _unpack_extras(self) -> Tensor:
        carrier = self._carrier
        if carrier is None:
            assert self._own_extras is not None
            return self._own_extras
        room = carrier[-self._extra_room(carrier.dtype) :] if self._num_extras else carrier[:0]
        if carrier.dtype == torch.float64:
            return room.clone()
        parts = room.view(self._size, 3, self._num_extras).double()
        return parts.sum(dim=1).sum(dim=0)


def _grouped(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters of one dtype and device, so many that their gradients take 25 MB at most (or one that takes more)."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for same in by_kind.values():
        group: list[nn.Parameter] = []
        num_bytes = 0
        for parameter in same:
            if group and num_bytes + parameter.nbytes > _MAX_BYTES:
                yield group
                group, num_bytes = [], 0
            group.append(parameter)
            num_bytes += parameter.nbytes
        yield group


def _make_bucket(parameters: list[nn.Parameter], *, room: int) -> _Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    first = parameters[0]
    flat = torch.zeros(sum(sizes) + len(sizes) + room, dtype=first.dtype, device=first.device)
    bucket = _Bucket(parameters, flat)
    start = 0
    for parameter, size in zip(parameters, sizes, strict=True):
        bucket.views.append(flat[start : start + size].view(parameter.shape))
        start += size
    bucket.flags = flat[start : start + len(sizes)]
    return bucket


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
