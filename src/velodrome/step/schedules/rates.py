"""The learning rates of an optimizer's groups as factors of their initial ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from velodrome.step.schedules.curves import Curve
    from velodrome.step.schedules.spans import RunLength
    from velodrome.step.schedules.spec import Constant

__all__ = ["LearningRates", "set_rate"]


def set_rate(group: dict[str, Any], lr: float | Tensor) -> None:
    """Set a group's learning rate, in place where it is a tensor, as capturable optimizers want it: without a wait."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


class LearningRates:
    """The learning rates of an optimizer's groups, as factors of their initial ones.

    The initial ones are kept in the groups as "initial_lr", as torch's schedulers do, so they are saved with the optimizer.
    Rather than a `LambdaLR`: 0.4 of its time an update with the same curve, and `optimizer.step` is not replaced.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._initial: list[float] = []
        self._initial = self._remember()
        self._curves: list[Curve] = []
        self._fit: tuple[Constant, RunLength] | None = None

    def follow(self, spec: Constant, run: RunLength) -> None:
        """Take the curve of each group for a fitted run; the initial learning rates are read anew."""
        self._fit = spec, run
        self._initial = self._remember()
        self._curves = [spec.curve(run, initial) for initial in self._initial]

    def refresh(self) -> None:
        """Read the initial learning rates anew: a checkpoint may have brought others."""
        if self._fit is not None:
            self.follow(*self._fit)

    def set(self, update_index: int) -> None:
        """Set the learning rates of the update with that index, in place where they are tensors: without a wait."""
        groups = self._optimizer.param_groups  # looked up each time: loading an optimizer's state makes new ones
        if len(groups) != len(self._curves):
            self.refresh()  # a group was added: the learning rate that it came with is its initial one
        for group, initial, curve in zip(groups, self._initial, self._curves, strict=True):
            set_rate(group, initial * curve(update_index))

    def _remember(self) -> list[float]:
        initial = []
        for index, group in enumerate(self._optimizer.param_groups):
            lr = group["lr"]
            if index < len(self._initial):  # a loaded state may lack it, its "lr" being one of the middle of a run
                group.setdefault("initial_lr", self._initial[index])
            base = group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
            initial.append(base.item() if isinstance(base, Tensor) else float(base))  # SYNC: once, before training
        return initial
