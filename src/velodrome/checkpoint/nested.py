"""Nested state of any ordinary kind as tensors and JSON, and back: what pickle would be used for elsewhere.

State of optimizers, metrics and callbacks is tables and lists with tensors, numbers and None at any depth. `split` puts the
tensors into a table of their own and leaves their names in place; `join` puts them back. Tuples, tables whose keys are no texts,
arrays, dtypes and queues come back as what they were. Anything else is refused with its place.
"""

from __future__ import annotations

import numbers
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["join", "split"]

_MARK = "$"


def split(value: Any, tensors: dict[str, Tensor], *, place: str) -> Any:
    """Return the value as JSON can hold it; its tensors go into `tensors` under their places.

    >>> split({"lr": 0.1, 3: (1, None)}, {}, place="state")
    {'$table': [['lr', 0.1], [3, {'$tuple': [1, None]}]]}

    Raises:
        CheckpointError: something else than tensors, arrays, numbers, texts, None, lists, tuples and tables is in it.
    """
    import numpy
    import torch

    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, torch.Tensor):
        tensors[place] = value
        return {"$tensor": place}
    if isinstance(value, numpy.ndarray) and value.dtype != object:
        tensors[place] = torch.from_numpy(value.copy())
        return {"$array": place}
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        inner = {key: split(each, tensors, place=f"{place}/{key}") for key, each in value.items()}
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in inner):
            return inner
        return {"$table": [[split(key, tensors, place=f"{place}/key"), each] for key, each in inner.items()]}
    if isinstance(value, (list, tuple, deque)):
        items = [split(each, tensors, place=f"{place}/{index}") for index, each in enumerate(value)]
        if isinstance(value, deque):
            return {"$queue": items, "$longest": value.maxlen}
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    raise CheckpointError(
        f"{place} is a {type(value).__name__}. A checkpoint holds tensors, arrays, numbers, texts, None, and lists and tables of "
        f"them, and no code. Keep it out of the state, or turn it into one of these.",
        place=place,
    )


def join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `split` was given.

    Raises:
        CheckpointError: a tensor that it names is missing.
    """
    import torch

    if isinstance(value, list):
        return [join(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": str(name)}:
            return _take(tensors, name)
        case {"$array": str(name)}:
            return _take(tensors, name).numpy()
        case {"$tuple": list(items)}:
            return tuple(join(each, tensors) for each in items)
        case {"$queue": list(items), "$longest": longest}:
            return deque((join(each, tensors) for each in items), maxlen=longest)
        case {"$table": list(pairs)}:
            return {join(key, tensors): join(each, tensors) for key, each in pairs}
        case {"$dtype": str(name)}:
            return _dtype(getattr(torch, name, None), name)
        case _:
            return {key: join(each, tensors) for key, each in value.items()}


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"The checkpoint names a tensor {name!r} that it does not hold. Use another checkpoint.", name=name
        )
    return tensors[name]


def _dtype(found: object, name: str) -> object:
    import torch

    if not isinstance(found, torch.dtype):
        raise CheckpointError(
            f"The checkpoint names a dtype {name!r} that torch does not know. Use another checkpoint."
        )
    return found
