"""Velodrome: the training loop for PyTorch.

```python
import velodrome as vd

result = vd.fit(model, train, val, loss="cross_entropy", optimizer="sgd", lr=1e-3, epochs=5, metrics=["accuracy"])
```

The names below are the public surface; they are looked up when first used, so that `import velodrome` costs
nothing beyond `import torch`, and the command line can answer `--help` without either.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from velodrome import errors, transforms
    from velodrome.advise.batch_size import BatchSizes, find_batch_size
    from velodrome.advise.lr_curve import LRCurve
    from velodrome.advise.lr_finder import LRFinder, find_lr
    from velodrome.api import evaluate, fit, predict
    from velodrome.averages import EMA, SWA
    from velodrome.callbacks.base import Callback
    from velodrome.callbacks.best_checkpoint import BestCheckpoint
    from velodrome.callbacks.early_stopping import EarlyStopping
    from velodrome.checkpoint.policy import Checkpointing
    from velodrome.data.loader import DataLoader
    from velodrome.loop.progress import StopReason
    from velodrome.loop.result import FitResult
    from velodrome.nonfinite.replaying import replay
    from velodrome.recipes.trained_model import load_model
    from velodrome.seeding import seed_everything
    from velodrome.trainer import Trainer

__version__ = "0.1.0.dev0"

_HOMES = {
    "BatchSizes": "velodrome.advise.batch_size",
    "EMA": "velodrome.averages",
    "SWA": "velodrome.averages",
    "BestCheckpoint": "velodrome.callbacks.best_checkpoint",
    "Callback": "velodrome.callbacks.base",
    "Checkpointing": "velodrome.checkpoint.policy",
    "DataLoader": "velodrome.data.loader",
    "EarlyStopping": "velodrome.callbacks.early_stopping",
    "FitResult": "velodrome.loop.result",
    "LRCurve": "velodrome.advise.lr_curve",
    "LRFinder": "velodrome.advise.lr_finder",
    "StopReason": "velodrome.loop.progress",
    "Trainer": "velodrome.trainer",
    "errors": "velodrome.errors",
    "evaluate": "velodrome.api",
    "find_batch_size": "velodrome.advise.batch_size",
    "find_lr": "velodrome.advise.lr_finder",
    "fit": "velodrome.api",
    "load_model": "velodrome.recipes.trained_model",
    "predict": "velodrome.api",
    "replay": "velodrome.nonfinite.replaying",
    "seed_everything": "velodrome.seeding",
    "transforms": "velodrome.transforms",
}

__all__ = [
    "EMA",
    "SWA",
    "BatchSizes",
    "BestCheckpoint",
    "Callback",
    "Checkpointing",
    "DataLoader",
    "EarlyStopping",
    "FitResult",
    "LRCurve",
    "LRFinder",
    "StopReason",
    "Trainer",
    "__version__",
    "errors",
    "evaluate",
    "find_batch_size",
    "find_lr",
    "fit",
    "load_model",
    "predict",
    "replay",
    "seed_everything",
    "transforms",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'velodrome' has no attribute {name!r}")
    module = _import(home)
    value = module if name in ("errors", "transforms") else getattr(module, name)
    globals()[name] = value
    return value


def _import(home: str) -> ModuleType:
    """Import a module without the collector: it would look through all of torch's objects, a tenth of a second, and find nothing."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(home)
    finally:
        if was_collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
