"""The loop.

```text
for every epoch:
    for every batch of the training data:
        forward                 model and loss
        step                    backward, update, zero the gradients
        measure                 metrics, on the device
    for every batch of the validation data:
        forward, measure        eval mode, inference mode; both put back afterwards
```

That is all there is. `Trainer.fit` and `velodrome.fit` only call the function below, and it uses nothing but the
trainer's public methods: paste its body into a script and you get the same bits (law 9), then change what you like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from velodrome.loop.host import FitHost
    from velodrome.loop.result import FitResult

__all__ = ["fit"]


def fit(
    trainer: FitHost,
    train: object,
    val: object = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
) -> FitResult:
    """Train until the first of the budgets is used up; evaluate after every epoch when there is validation data."""
    for epoch in trainer.epochs(epochs, steps=steps, seconds=seconds):
        for batch in epoch.train(train):
            outcome = trainer.forward(batch)
            trainer.step(outcome.loss, items=outcome.items)
            trainer.measure(outcome)
        for batch in epoch.evaluate(val):
            trainer.measure(trainer.forward(batch))
    return trainer.result
