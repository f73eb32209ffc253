"""Weighted means of values that stay on the device until somebody asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Merge = Callable[[Mapping[str, list[float]]], Mapping[str, list[float]]]

__all__ = ["MAX_NAMES", "MAX_PENDING", "RunningMeans"]

MAX_PENDING = 64
MAX_NAMES = 1000


@dataclass
class _Pending:
    """Values of one name that are not summed yet."""

    scalars: dict[float, list[Tensor]] = field(default_factory=dict)
    """weight -> scalar tensors: equal weights need one multiplication for all of them."""
    weighted: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """scalar tensors with weights that are tensors too"""
    vectors: list[Tensor] = field(default_factory=list)
    """one value a sample"""
    count: int = 0


def _as_it_is(sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    return sums


class RunningMeans:
    """Exact means over samples, whatever the sizes of the batches.

    `add` appends to a list and does no arithmetic; every 64 values are summed by a handful of operations in float64.
    Rather than one addition a step: that is two more kernels a step (measured: 6 to 10 microseconds on a CPU).

    Cost: `drain_blocking` waits for the device once; nothing else does.
    """

    def __init__(self) -> None:
        self.num_dropped = 0
        """values that were not counted, because there were more names than `MAX_NAMES`"""
        self._names: set[str] = set()
        self._pending: dict[str, _Pending] = {}
        self._device_sums: dict[str, list[Tensor]] = {}
        self._device_counts: dict[str, list[Tensor]] = {}
        self._interval: dict[str, list[float]] = {}
        self._totals: dict[str, list[float]] = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        """Count a value: a single one that is the mean of `weight` items, or a vector with one value an item.

        The mean of no items is no value, whatever it says (it is often NaN). A weight on the device stays there.

        Raises:
            ArgumentError: not a number.
        """
        if not isinstance(value, Tensor):
            self._add_number(name, value, weight)
            return
        if name not in self._names and not self._take_name(name):
            return
        pending = self._pending.get(name)
        if pending is None:
            pending = self._pending.setdefault(name, _Pending())
        if value.ndim == 0:
            if isinstance(weight, Tensor):
                pending.weighted.append(_on_one_device(value.detach(), _own_scalar(name, weight)))
            elif not weight:
                return
            else:
                pending.scalars.setdefault(weight, []).append(value.detach())
        elif value.numel() == 1:
            self.add(name, value.reshape(()), weight)
            return
        else:
            pending.vectors.append(value.detach())
        pending.count += 1
        if pending.count >= MAX_PENDING:
            self._sum(name, pending)

    def add_counted(self, name: str, total: Tensor, count: Tensor) -> None:
        """Count a sum over as many items as a tensor on the device says: nothing waits to learn the number."""
        if name not in self._names and not self._take_name(name):
            return
        self._device_sums.setdefault(name, []).append(_to_wide(total))
        self._device_counts.setdefault(name, []).append(_to_wide(count))
        self._interval.setdefault(name, [0.0, 0.0])

    def drain_blocking(self, merge: Merge = _as_it_is) -> dict[str, float]:
        """Return the means of what was added since the last call, and add it to the totals.

        Args:
            merge: adds the sums and weights by name to those of other processes.
        """
        for name, pending in self._pending.items():
            self._sum(name, pending)
        held: dict[torch.device, list[tuple[str, int, Tensor]]] = {}
        for place, parts_by_name in enumerate((self._device_sums, self._device_counts)):
            for name, parts in parts_by_name.items():
                for same in _stacks(parts):
                    held.setdefault(same.device, []).append((name, place, same.sum()))
            parts_by_name.clear()
        for entries in held.values():
            sums = torch.stack([part for _, _, part in entries])
            numbers = sums.tolist()  # SYNC: one read for all names on a device, at log points only
            for (name, place, _), number in zip(entries, numbers, strict=True):
                self._interval[name][place] += number
        means = {}
        for name, (total, weight) in merge(self._interval).items():
            if weight > 0:
                means[name] = total / weight
            totals = self._totals.setdefault(name, [0.0, 0.0])
            totals[0] += total
            totals[1] += weight
        self._interval.clear()
        return means

    def means_blocking(self, merge: Merge = _as_it_is) -> dict[str, float]:
        """Return the means of everything that was added since the last reset; `merge` as for `drain_blocking`."""
        self.drain_blocking(merge)
        return {name: total / weight for name, (total, weight) in self._totals.items() if weight > 0}

    def reset(self) -> None:
        """Forget everything."""
        self._names.clear()
        self._pending.clear()
        self._device_sums.clear()
        self._device_counts.clear()
        self._interval.clear()
        self._totals.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what is summed and what is still to be: a later run adds up the same numbers in the same order."""
        return {
            "names": sorted(self._names),
            "num_dropped": self.num_dropped,
            "pending": {
                name: {
                    "scalars": {weight: _packed(values) for weight, values in pending.scalars.items()},
                    "values": _packed([value for value, _ in pending.weighted]),
                    "weights": _packed([weight for _, weight in pending.weighted]),
                    "vectors": list(pending.vectors),
                    "count": pending.count,
                }
                for name, pending in self._pending.items()
            },
            "device_sums": {name: _packed(parts) for name, parts in self._device_sums.items()},
            "device_counts": {name: _packed(parts) for name, parts in self._device_counts.items()},
            "interval": {name: list(numbers) for name, numbers in self._interval.items()},
            "totals": {name: list(numbers) for name, numbers in self._totals.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` returned, with its tensors on this device."""

        def unpacked(parts: Any) -> list[Tensor]:
            return [part.to(device) for stack in parts for part in (stack.unbind() if stack.ndim else [stack])]

        self._names = set(state["names"])
        self.num_dropped = state["num_dropped"]
        self._pending = {
            name: _Pending(
                scalars={weight: unpacked(parts) for weight, parts in saved["scalars"].items()},
                weighted=list(zip(unpacked(saved["values"]), unpacked(saved["weights"]), strict=True)),
                vectors=[vector.to(device) for vector in saved["vectors"]],
                count=saved["count"],
            )
            for name, saved in state["pending"].items()
        }
        self._device_sums = {name: unpacked(parts) for name, parts in state["device_sums"].items()}
        self._device_counts = {name: unpacked(parts) for name, parts in state["device_counts"].items()}
        self._interval = {name: list(numbers) for name, numbers in state["interval"].items()}
        self._totals = {name: list(numbers) for name, numbers in state["totals"].items()}

    def absorb_blocking(self, other: RunningMeans) -> None:
        """Add what another process has counted since all of them put their sums together; waits for the device."""

        def take(sums: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
            for name, (total, weight) in sums.items():
                entry = self._interval.setdefault(name, [0.0, 0.0])
                entry[0] += total
                entry[1] += weight
            return {}

        other.drain_blocking(take)
        self._names |= other._names
        self.num_dropped += other.num_dropped

    def forget_own(self) -> None:
        """Forget what was counted since all processes put their sums together; the totals, which all know, stay."""
        self._pending.clear()
        self._device_sums.clear()
        self._device_counts.clear()
        self._interval.clear()

    def _take_name(self, name: str) -> bool:
        """Return whether there is room for one more name; what comes after the first thousand is dropped and counted."""
        if len(self._names) < MAX_NAMES:
            self._names.add(name)
            return True
        self.num_dropped += 1
        return False

    def _add_number(self, name: str, value: float, weight: Tensor | float) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ArgumentError(f"{name}={value!r} cannot be averaged. Log numbers or tensors.") from None
        if isinstance(weight, Tensor):
            self.add(name, torch.full((), number, dtype=torch.float64), weight)
            return
        if not weight:
            return
        if name not in self._names and not self._take_name(name):
            return
        entry = self._interval.setdefault(name, [0.0, 0.0])
        entry[0] += number * weight
        entry[1] += weight

    def _sum(self, name: str, pending: _Pending) -> None:
        if not pending.count:
            return
        sums = self._device_sums.setdefault(name, [])
        entry = self._interval.setdefault(name, [0.0, 0.0])
        for weight, values in pending.scalars.items():
            sums.extend(_to_wide(same).sum() * weight for same in _stacks(values))
            entry[1] += weight * len(values)
        if pending.weighted:
            values, weights = (_stacks(list(column)) for column in zip(*pending.weighted, strict=True))
            for value, weight in zip(values, map(_to_wide, weights), strict=True):
                # Not a product alone: NaN, the mean of no items, times 0 is NaN.
                sums.append(torch.where(weight == 0, 0.0, _to_wide(value) * weight).sum())
                self._device_counts.setdefault(name, []).append(weight.sum())
        for same in _by_device(pending.vectors):
            flat = torch.cat([vector.reshape(-1) for vector in same])
            sums.append(_to_wide(flat).sum())
            entry[1] += flat.numel()
        self._pending[name] = _Pending()


def _stacks(tensors: list[Tensor]) -> list[Tensor]:
    """Return the scalars in one vector, or in one a device: somebody may log a value from the CPU beside losses on the GPU.

    The attempt is what costs nothing where all are on one device, which is nearly always.
    """
    try:
        return [torch.stack(tensors)]
    except RuntimeError:
        return [torch.stack(same) for same in _by_device(tensors)]


def _packed(tensors: list[Tensor]) -> list[Tensor]:
    """Return scalars as few vectors, in their order: one tensor in a file where there were sixty-four."""
    if not tensors:
        return []
    alike = all(each.dtype == tensors[0].dtype and each.device == tensors[0].device for each in tensors)
    return [torch.stack(tensors)] if alike else [each.reshape(1) for each in tensors]


def _by_device(tensors: list[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())


def _own_scalar(name: str, weight: Tensor) -> Tensor:
    """Return a copy of a weight: a count that is the caller's own may have changed by the time of the sum."""
    if weight.numel() != 1:
        raise ArgumentError(
            f"{name} was given items of shape {tuple(weight.shape)}. A mean is over one number of items: take their sum()."
        )
    return weight.detach().reshape(()).clone()


def _on_one_device(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both on the device of the one that is not on the CPU: the way there waits for nothing, the way back would."""
    if value.device == weight.device:
        return value, weight
    if value.device.type == "cpu":
        return value.to(weight.device, non_blocking=True), weight
    return value, weight.to(value.device, non_blocking=True)


def _to_wide(values: Tensor) -> Tensor:
    """Return the values in float64, in which sums of float32 losses are exact for all practical lengths.

    MPS has no float64: there the sum is made in float32.
    """
    return values.float() if values.device.type == "mps" else values.double()
