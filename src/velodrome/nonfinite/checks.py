"""Losses and weights that are not finite end a run, and are never saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from velodrome.errors import NumericsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["check_finite_mean", "check_finite_weights"]


def check_finite_mean(mean: float, *, what: str, step: int, epoch: int, lr: float) -> None:
    """Refuse a mean training loss or gradient norm that was read at a log point and is NaN or infinite.

    Raises:
        NumericsError: with step, epoch and learning rate.
    """
    if not math.isfinite(mean):
        raise NumericsError(
            f"The training {what} became {mean} at step {step} or since the log point before it (epoch {epoch}, lr {lr:g}). "
            f"A mean over finite numbers is finite. Try a smaller lr, or look at the data and at log, sqrt and division in the model and the loss; "
            f"these weights were not saved.",
            step=step,
            lr=lr,
        )


def check_finite_weights(named: Iterable[tuple[str, Tensor]], *, step: int, what: str = "weight") -> None:
    """Refuse weights that are about to be saved and are not finite: the loss of the step before may have been.

    Raises:
        NumericsError: names the first such parameter.
    Cost: a sum and a wait for the device per parameter; only where a checkpoint is written.
    """
    for name, parameter in named:
        if parameter.is_floating_point() and not torch.isfinite(parameter.sum()):  # SYNC: saving waits anyway
            if torch.isfinite(parameter).all():  # SYNC: only the sum overflowed
                continue
            raise NumericsError(
                f"The {what} {name!r} is not finite after step {step}. Such weights are never saved; the checkpoints before are "
                f"untouched. Try a smaller lr, or look at the gradients of that layer.",
                step=step,
                parameter=name,
            )
