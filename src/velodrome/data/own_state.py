"""Data that tell their position themselves: torchdata's loader, the streams of Hugging Face datasets, the iterators of grain.

What they say is kept in the checkpoint as it is, and given back before anything is read: nothing that was skipped is read again.
Asked when a batch is over, they tell of what was handed out, whatever they have fetched ahead.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset

from velodrome.data.streaming import has_state

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["position_of", "put_at", "put_iterator_at"]


def position_of(data: Any, iterator: Any) -> dict[str, Any] | None:
    """Return what the data say of their position, by who said it; None where nobody does.

    Args:
        data: a loader or another iterable.
        iterator: that goes over it; None where none was begun.
    """
    if has_state(data):
        return {"own": data.state_dict()}
    dataset = _streamed_dataset(data)
    if dataset is not None:
        return {"dataset": dataset.state_dict()}
    if iterator is not data and has_state(iterator):
        return {"iterator": iterator.state_dict()}
    if hasattr(iterator, "get_state") and hasattr(iterator, "set_state"):  # grain's
        return {"iterator": _as_text(iterator.get_state())}
    return None


def put_at(state: Mapping[str, Any], data: Any) -> bool:
    """Give data their position back, before they are iterated over; return whether they took it, or their iterator will."""
    dataset = _streamed_dataset(data)
    if "own" in state and has_state(data):
        data.load_state_dict(state["own"])
    elif "dataset" in state and dataset is not None:
        dataset.load_state_dict(state["dataset"])
    else:
        return "iterator" in state
    return True


def put_iterator_at(state: Mapping[str, Any], iterator: Any) -> None:
    """Give an iterator its position back, where it was the one that told it."""
    if "iterator" not in state:
        return
    if hasattr(iterator, "set_state"):
        iterator.set_state(_from_text(state["iterator"]))
    else:
        iterator.load_state_dict(state["iterator"])


def _streamed_dataset(data: Any) -> Any:
    """Return the stream with a state that a loader of PyTorch's reads in this process; None where there is none."""
    if isinstance(data, TorchDataLoader) and not data.num_workers and isinstance(data.dataset, IterableDataset):
        return data.dataset if has_state(data.dataset) else None
    return None


def _as_text(state: Any) -> Any:
    return {"base64": base64.b64encode(state).decode("ascii")} if isinstance(state, bytes) else state


def _from_text(state: Any) -> Any:
    is_text = isinstance(state, dict) and state.keys() == {"base64"}
    return base64.b64decode(state["base64"]) if is_text else state
