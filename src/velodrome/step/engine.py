"""What the trainer asks of an engine: how a batch becomes a loss, and a loss an update.

```text
eager       step/eager.py       plain PyTorch, a call at a time
compiled    step/compiled.py    the same calls, of a model that torch.compile has translated
captured    step/capture/       forward, loss, backward, clipping and update recorded once and replayed as one call
```

Whichever it is, `loop/fit.py` reads the same: `forward`, `step`, `measure`. What an engine has to know of the loops around its
batches, it is told through `step/phases.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from velodrome.step.eager import Outcome
    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.losses import Loss

__all__ = ["ENGINES", "Engine"]

ENGINES = ("auto", "eager", "compiled", "captured")


class Engine(Protocol):
    """Runs batches through the model and the loss; in a training loop that it drives itself, the update too."""

    model: nn.Module
    loss: Loss | None
    line: str
    """which engine it is and why, in words"""
    part_sizes: dict[str, int]
    """samples that go through the model at once since memory ran out, by "train" and "evaluation"; for a checkpoint"""

    def driven(self) -> AbstractContextManager[None]:
        """Return the context of a loop that gives every training batch to `forward`, its loss to `step`, and looks at neither between.

        A loop of the user's own promises nothing of that kind, so that it always gets its loss at once.
        """
        ...

    def forward(self, batch: Any) -> Outcome:
        """Return output, target and loss of a batch."""
        ...

    def forward_first(self, first_batch: FirstBatch, batch: Any, role: str) -> Outcome:
        """Do the same for the first batch of a source, with its checks."""
        ...

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch, without its target."""
        ...

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `forward` calls, in order, in words and with the function: for `Trainer.explain`."""
        ...
