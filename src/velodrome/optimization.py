"""From a trainer's arguments to the windows of its optimizers: who updates what, when, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from velodrome.errors import ArgumentError, nearest
from velodrome.step.arguments import check_accumulate
from velodrome.step.clipping import Clipping, layer_names
from velodrome.step.guard import make_guard
from velodrome.step.optimizers import resolve_optimizer, resolve_optimizers
from velodrome.step.precision import Precision, check_fits_model, make_scaler
from velodrome.step.schedules.base import NO_SCHEDULE, Schedule
from velodrome.step.updates import Updates
from velodrome.step.windows import Windows

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from velodrome.step.gradient_world import GradientWorld

__all__ = ["Optimization"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """What a `Trainer` was told about its updates, in the trainer's own words."""

    optimizer: Any
    lr: float | None = None
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    parameter_groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scheduler: Any = None
    scheduler_args: Mapping[str, Any] = field(default_factory=dict)
    scheduler_every: str | None = None
    scheduler_monitor: str | None = None
    scaler_args: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    grad_norms: bool = False
    on_nonfinite: str = "stop"

    def make_windows(
        self,
        model: nn.Module,
        *,
        precision: Precision,
        device: torch.device,
        world: GradientWorld,
        is_recorded: bool = False,
    ) -> Windows:
        """Return the accumulation windows of all optimizers: none, the only one, or those of a dict.

        Args:
            model: on its device.
            precision: of the forward passes.
            device: the model's.
            world: the processes that train together.
            is_recorded: steps are to be recorded, see `make_guard`.
        Raises:
            ArgumentError: an argument is wrong, or goes with another one that is not there.
        """
        check_fits_model(precision, model)
        optimizers = self._optimizers(model)
        schedulers = self._schedulers(optimizers)
        layers = layer_names(model) if self.grad_norms else {}
        windows = {}
        for name, optimizer in optimizers.items():
            schedule = self._schedule(schedulers[name], optimizer) if name in schedulers else NO_SCHEDULE
            windows[name] = Updates(
                optimizer,
                accumulate=check_accumulate(self.accumulate),
                clipping=Clipping(
                    norm=self.clip_norm, value=self.clip_value, layers=layers, keep_norms=self.grad_norms
                ),
                precision=precision,
                scaler=make_scaler(precision, device, self.scaler_args),
                schedule=schedule,
                is_only=len(optimizers) == 1,
                world=world,
                guard=make_guard(
                    self.on_nonfinite,
                    optimizer,
                    device,
                    is_scaled=precision.needs_scaler,
                    is_recorded=is_recorded,
                ),
            )
        return Windows(windows)

    def _optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        if not isinstance(self.parameter_groups, Mapping):
            raise ArgumentError(
                f"parameter_groups={self.parameter_groups!r} is no dict. Write patterns and their options: "
                f'{{"head": {{"lr": 1e-3}}}}.'
            )
        if self.optimizer is None:
            given = [name for name in ("lr", "scheduler") if getattr(self, name) is not None]
            given += [*sorted(self.optimizer_args), *(["parameter_groups"] if self.parameter_groups else [])]
            if given:
                raise ArgumentError(
                    f"{', '.join(given)} was given together with optimizer=None, a trainer that does not train. "
                    f'Give an optimizer, such as "adam".'
                )
            return {}
        arguments = dict(self.optimizer_args)
        if isinstance(self.optimizer, Mapping):
            if self.parameter_groups:
                raise ArgumentError(
                    "parameter_groups was given together with several optimizers. Each of them is a group already: give their "
                    "options to the optimizers themselves."
                )
            return resolve_optimizers(self.optimizer, model, lr=self.lr, arguments=arguments)
        groups = self.parameter_groups or None
        return {"optimizer": resolve_optimizer(self.optimizer, model, lr=self.lr, arguments=arguments, groups=groups)}

    def _schedule(self, scheduler: object, optimizer: Optimizer) -> Schedule:
        arguments, every, monitor = self.scheduler_args, self.scheduler_every, self.scheduler_monitor
        if scheduler is None and not arguments and every is None and monitor is None:
            return NO_SCHEDULE
        from velodrome.step.schedules.resolve import (
            resolve_scheduler,  # where there is none, its modules are not needed
        )

        return resolve_scheduler(scheduler, optimizer, arguments=arguments, every=every, monitor=monitor)

    def _schedulers(self, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
        """Return what was given as the scheduler of each optimizer: one for each, or one made by name or factory for all."""
        scheduler = self.scheduler
        if isinstance(scheduler, Mapping):
            for name in scheduler:
                if name not in optimizers:
                    raise ArgumentError(f"scheduler[{name!r}] belongs to no optimizer. {nearest(name, optimizers)}")
            return dict(scheduler)
        if isinstance(scheduler, LRScheduler) and len(optimizers) > 1:
            for name, optimizer in optimizers.items():
                if scheduler.optimizer is optimizer:
                    return {name: scheduler}
        if scheduler is None and (self.scheduler_args or self.scheduler_every or self.scheduler_monitor):
            return dict.fromkeys(optimizers)  # refused with a sentence: arguments of nothing
        return {} if scheduler is None else dict.fromkeys(optimizers, scheduler)
