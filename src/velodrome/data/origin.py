"""What training data are, in a few facts: for whoever says why they are slow."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from velodrome.data.transforms.base import Transform

__all__ = ["describe_origin"]


def describe_origin(source: Any) -> tuple[str, dict[str, Any]]:
    """Return the class that the data are of, and how they are read now.

    - `workers`: processes that fetch samples, those that `num_workers="auto"` took included
    - `workers_are_measured`: "auto" decides how many
    - `workers_failed`: "start" or "run", where it took none because those that it tried failed; "" otherwise
    - `takes_workers`: more of them would change nothing but the time
    - `is_stream`: each worker would read a part of its own, so that their number decides the order
    - `in_memory`: the whole data are tensors
    - `transform`: the name of the user's function that changes each batch; "" where there is none

    Args:
        source: a loader as the trainer runs it, or any iterable of batches.
    """
    loader = getattr(source, "loader", source)
    data = getattr(loader, "data", loader)  # an iterable that is used as it is
    asked = getattr(data, "num_workers", None)
    dataset, seen = data, 0
    while hasattr(dataset, "dataset") and seen < 5:  # a loader's, then what a Subset is one of
        dataset, seen = dataset.dataset, seen + 1
    name = getattr(dataset, "name", None) if type(dataset).__name__ == "Restarting" else None
    is_stream = isinstance(dataset, IterableDataset)
    facts = {
        "workers": getattr(source, "num_workers_in_use", 0),
        "workers_are_measured": asked == "auto" and not is_stream,
        "workers_failed": getattr(getattr(loader, "_choice", None), "failure", ""),
        "takes_workers": asked is not None and not is_stream,
        "is_stream": is_stream,
        "in_memory": getattr(source, "columns", None) is not None,
        "transform": _name_of_function(getattr(loader, "transform", None)),
    }
    return name or type(dataset).__name__, facts


def _name_of_function(transform: Any) -> str:
    """Return the name of a function of the user's that changes batches; "" where there is none, or a transform of ours."""
    if transform is None or isinstance(transform, Transform):
        return ""
    return getattr(transform, "__name__", type(transform).__name__)
