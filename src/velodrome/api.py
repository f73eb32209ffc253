"""The one-call way in: `fit`, `evaluate` and `predict`, each a `Trainer` and one of its methods."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.step.losses import NO_LOSS
from velodrome.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from velodrome.loop.result import FitResult

__all__ = ["evaluate", "fit", "predict"]

_OWN = ("epochs", "steps", "seconds", "batch_size", "micro_batch", "eval_batch_size", "shuffle")


def fit(
    model: nn.Module,
    train: Any,
    val: Any = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    eval_batch_size: int | None = None,
    shuffle: bool = True,
    **trainer_arguments: Any,
) -> FitResult:
    """Train a model, and evaluate it after every epoch.

    ```python
    result = velodrome.fit(model, (x, y), batch_size=64, loss="cross_entropy", optimizer="sgd", lr=1e-3, epochs=5, metrics=["accuracy"])
    ```

    Args: those of `Trainer.fit`, and by keyword those of `Trainer`.
    Returns:
        History, best epoch, reason of the end, and where the files are.
    Raises:
        ArgumentError: an argument that neither has; the nearest is shown.
    """
    known = [name for name in inspect.signature(Trainer).parameters if name != "model"]
    for name in trainer_arguments:
        if name not in known:
            raise ArgumentError(f"fit() has no argument {name!r}. {nearest(name, [*known, *_OWN])}")
    trainer = Trainer(model, **trainer_arguments)
    return trainer.fit(
        train,
        val,
        epochs=epochs,
        steps=steps,
        seconds=seconds,
        batch_size=batch_size,
        micro_batch=micro_batch,
        eval_batch_size=eval_batch_size,
        shuffle=shuffle,
    )


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], Any] | str | None = None,
    metrics: Sequence[Any] | Mapping[str, Any] = (),
    step_fn: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> dict[str, float]:
    """Return the exact means of loss and metrics over the data, such as `{"loss": 0.3, "accuracy": 0.9}`.

    Args: as those of `Trainer` and `Trainer.evaluate`. With metrics and no loss, the metrics alone are computed.
    """
    has_loss = loss is not None or step_fn is not None or not metrics
    trainer = _without_training(
        model, loss=loss if has_loss else NO_LOSS, metrics=metrics, step_fn=step_fn, device=device, progress=progress
    )
    values = trainer.evaluate(data, batch_size=batch_size)
    if not has_loss:
        values.pop("loss")
    return values


def predict(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Any:
    """Return the model's outputs for all samples, in their order, on the CPU.

    Args: as those of `Trainer.predict`: the last element of a tuple of two or more is the target, which is left out.
    """
    return _without_training(model, device=device, progress=progress).predict(data, batch_size=batch_size)


def _without_training(model: nn.Module, **arguments: Any) -> Trainer:
    """Return a trainer that only evaluates: a model whose weights are all frozen will do."""
    return Trainer(model, optimizer=None, **arguments)
