"""Learning rates that live on the device, so that a recorded update takes the one of its own step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.step.bare import BareStep

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["DeviceRates", "RatedStep"]


class DeviceRates:
    """The learning rate of each group of an optimizer as a tensor on the device.

    The groups keep their numbers: schedules, records and checkpoints see what they always see. The tensors are lent to the
    groups for the moment of an update.

    Args:
        optimizer: with a learning rate in each group.
        device: of its parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._tensors: list[Tensor] = []
        self._values: list[Any] = []

    def refresh(self) -> None:
        """Bring the tensors up to date; waits for nothing. Cost: one launch for each group whose learning rate has changed."""
        groups = self._optimizer.param_groups
        while len(self._tensors) < len(groups):
            self._tensors.append(torch.zeros((), dtype=torch.float32, device=self._device))
            self._values.append(None)
        for index, group in enumerate(groups):
            rate = group["lr"]
            if rate.__class__ is float:
                if rate != self._values[index]:
                    self._tensors[index].fill_(rate)
                    self._values[index] = rate
            elif isinstance(rate, Tensor):  # it may change in place, where nobody sees it
                self._tensors[index].copy_(rate, non_blocking=True)
                self._values[index] = None
            else:
                self._tensors[index].fill_(float(rate))  # SYNC: none, no tensor
                self._values[index] = None

    def lend(self, *, is_recorded: bool) -> list[dict[str, Any]]:
        """Give the groups the tensors; return what they had, for `take_back`.

        Args:
            is_recorded: torch's Adam refuses to be recorded unless its groups say that it can be. Fused, it always can.
        """
        kept = []
        for group, tensor in zip(self._optimizer.param_groups, self._tensors, strict=False):
            kept.append({name: group[name] for name in ("lr", "capturable") if name in group})
            group["lr"] = tensor
            if is_recorded and "capturable" in group:
                group["capturable"] = True
        return kept

    def take_back(self, kept: list[dict[str, Any]]) -> None:
        """Give the groups what they had."""
        for group, values in zip(self._optimizer.param_groups, kept, strict=False):
            group.update(values)


class RatedStep:
    """Calls `optimizer.step()` with learning rates from the device: recorded or not, it is the same arithmetic.

    Args:
        optimizer: fused.
        rates: of it.
    """

    def __init__(self, optimizer: Optimizer, rates: DeviceRates) -> None:
        self._step = BareStep(optimizer)
        self._rates = rates
        self.is_recorded = False
        """whether what is called now is being recorded"""

    def __call__(self) -> None:
        """Update the parameters."""
        if not self.is_recorded:
            self._rates.refresh()
        kept = self._rates.lend(is_recorded=self.is_recorded)
        try:
            self._step()
        finally:
            self._rates.take_back(kept)
