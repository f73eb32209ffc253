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

That is all there is. It uses nothing but the trainer's public methods: paste the body of the function below into a script
and you get the same bits (law 9), then change what you like. `Trainer.fit` turns what it is given into loaders and calls
it; `velodrome.fit` makes the trainer.

Where the rest happens: batches reach the device and modes are set in `loop/epochs.py` (`Epoch.train`, `Epoch.evaluate`); rows,
saves and callbacks at the end of an epoch in `run/run.py` (`Run.end_epoch`); `outcome` is `step/eager.py`'s `Outcome`.
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
