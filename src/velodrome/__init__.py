"""Velodrome: the training loop for PyTorch.

```python
import velodrome as vd

result = vd.fit(model, train, val, loss="cross_entropy", optimizer="sgd", lr=1e-3, epochs=5, metrics=["accuracy"])
```

The names below are the public surface; they are looked up when first used, so that `import velodrome` costs
nothing beyond `import torch`, and the command line can answer `--help` without either.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from velodrome import errors
    from velodrome.api import evaluate, fit, load_model, predict
    from velodrome.callbacks.base import Callback
    from velodrome.callbacks.best_checkpoint import BestCheckpoint
    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.data.loader import DataLoader
    from velodrome.loop.progress import StopReason
    from velodrome.loop.result import FitResult
    from velodrome.seeding import seed_everything
    from velodrome.trainer import Trainer

__version__ = "0.1.0.dev0"
