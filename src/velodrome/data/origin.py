"""What training data are, in a few facts: for whoever says why they are slow.

- `workers`: processes that fetch samples, those that `num_workers="auto"` took included
- `workers_are_measured`: "auto" decides how many
- `workers_failed`: "start" or "run", where it took none because those that it tried failed; "" otherwise
- `takes_workers`: more of them would change nothing but the time
- `is_stream`: each worker would read a part of its own, so that their number decides the order
- `in_memory`: the whole data are tensors
- `transform`: the name of the user's function that changes each batch; "" where there is none
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset

from velodrome.data.transforms.base import Transform

if TYPE_CHECKING:
    from velodrome.data.loader import DataLoader

__all__ = ["origin_of_iterable", "origin_of_loader"]

_DEEPEST = 5


def origin_of_loader(loader: DataLoader, *, in_memory: bool) -> tuple[str, dict[str, Any]]:
    """Return the class of a loader's dataset, and how it is read now."""
    dataset = _innermost(loader.dataset)
    is_stream = isinstance(dataset, IterableDataset)
    return type(dataset).__name__, {
        "workers": loader.num_workers_in_use,
        "workers_are_measured": loader.num_workers == "auto" and not is_stream,
        "workers_failed": loader.workers_failed,
        "takes_workers": not is_stream,
        "is_stream": is_stream,
        "in_memory": in_memory,
        "transform": _name_of_function(loader.transform),
    }


def origin_of_iterable(data: Any, *, name: str, workers: int) -> tuple[str, dict[str, Any]]:
    """Return the class of data that give batches themselves, a loader of PyTorch's say, and how they are read.

    Args:
        data: used as they are.
        name: of the function that yields them; "" where that is none.
        workers: of PyTorch's loader.
    """
    dataset = _innermost(data)
    is_stream = isinstance(dataset, IterableDataset)
    return name or type(dataset).__name__, {
        "workers": workers,
        "workers_are_measured": False,
        "workers_failed": "",
        "takes_workers": isinstance(data, TorchDataLoader) and not is_stream,
        "is_stream": is_stream,
        "in_memory": False,
        "transform": "",
    }


def _innermost(data: Any) -> Any:
    """Return what a loader reads, or a subset is one of."""
    for _ in range(_DEEPEST):
        if not hasattr(data, "dataset"):
            break
        data = data.dataset
    return data


def _name_of_function(transform: Any) -> str:
    """Return the name of a function of the user's that changes batches; "" where there is none, or a transform of ours."""
    if transform is None or isinstance(transform, Transform):
        return ""
    return getattr(transform, "__name__", type(transform).__name__)
