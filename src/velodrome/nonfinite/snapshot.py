"""What updates change, copied in memory, and put back: weights and buffers, optimizers, schedules, the average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.resume.run_state import clean_parameters
from velodrome.step.optimizer_state import load_optimizer_state, optimizer_state, parameter_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.run.run import Run

__all__ = ["RunSnapshot"]


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """The state after a step.

    Cost: memory for a second copy of the weights and of all that the optimizers keep; no wait.
    """

    step: int
    tensors: Mapping[str, Tensor]
    optimizers: Mapping[str, Any]
    updates: Mapping[str, Any]
    average: Mapping[str, Tensor]
    average_notes: Mapping[str, Any]

    @classmethod
    def take(cls, run: Run) -> RunSnapshot:
        """Copy the state of a run between two updates."""
        run.windows.settle_blocking()
        named, averaging = clean_parameters(run.model), run.averaging
        with averaging.raw():
            return cls(
                step=run.progress.steps_done,
                tensors={name: _copy(tensor) for name, tensor in _tensors(run).items()},
                optimizers={
                    name: _copy(optimizer_state(each.optimizer, parameter_names(each.optimizer, named)))
                    for name, each in run.windows.by_name.items()
                },
                updates={name: _copy(each.state_dict()) for name, each in run.windows.by_name.items()},
                average=_copy(dict(averaging.state_dict())),
                average_notes={**averaging.describe(), "last_step": averaging.last_step},
            )

    @torch.no_grad()
    def put_back(self, run: Run) -> None:
        """Give a run this state; gradients and open windows are dropped, and counts of what was skipped stay."""
        named = clean_parameters(run.model)
        for name, tensor in _tensors(run).items():
            tensor.copy_(self.tensors[name])
        for name, each in run.windows.by_name.items():
            skipped = each.skipped
            names = parameter_names(each.optimizer, named)
            load_optimizer_state(each.optimizer, _copy(self.optimizers[name]), names)
            each.load_state_dict(_copy(self.updates[name]))
            each.skipped = skipped
            each.free_gradients()
        if "num_averaged" in self.average_notes:
            run.averaging.load_state_dict(_copy(dict(self.average)), self.average_notes)
        run.forget_casts()


def _tensors(run: Run) -> dict[str, Tensor]:
    """Return parameters and buffers, those that are not saved too; the optimizers' own parameters as well."""
    found = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    held = {id(tensor) for tensor in found.values()}
    for name, updates in run.windows.by_name.items():
        for index, parameter in enumerate(updates.parameters):
            if id(parameter) not in held:
                found[f"{name}/{index}"] = parameter
    return found


def _copy(value: Any) -> Any:
    """Return a copy of nested state in which no tensor is shared."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(each) for each in value)
    return value
