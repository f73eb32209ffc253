"""What training data are, in a few facts: for whoever says why they are slow."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["describe_origin"]


def describe_origin(source: Any) -> tuple[str, dict[str, Any]]:
    """Return the class that the data are of, and how they are read: `workers`, `in_memory`, `cores`.

    Args:
        source: a loader as the trainer runs it, or any iterable of batches.
    """
    loader = getattr(source, "loader", source)
    data = getattr(loader, "data", loader)  # an iterable that is used as it is
    workers = getattr(data, "num_workers", 0)
    seen = 0
    while hasattr(data, "dataset") and seen < 5:  # a loader's, then what a Subset is one of
        data, seen = data.dataset, seen + 1
    name = getattr(data, "name", None) if type(data).__name__ == "Restarting" else None
    facts = {
        "workers": workers if isinstance(workers, int) else 0,
        "in_memory": getattr(source, "columns", None) is not None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }
    return name or type(data).__name__, facts
