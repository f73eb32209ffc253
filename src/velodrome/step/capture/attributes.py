"""What modules keep in Python besides tensors: read by value, as far as it is small, and put back. Generators are put back too."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Attributes"]

_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_LARGEST = (
    1000  # elements of a container, or numbers of an array, that are compared by value; of larger ones the length is
)
_DEEPEST = 6
_MOST = 20_000  # values that are read in all
_GENERATORS = (Generator, numpy.random.Generator, numpy.random.RandomState, random.Random)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial, type, nn.Module, Tensor)
_TORCHS_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, modules and hooks are looked at by others


class Attributes:
    """The attributes of modules at one moment: numbers and texts by value, and so small lists, dicts, sets, arrays and plain objects in them.

    A generator is read by its state. Tensors, functions and modules count as changed when they are others; their values are not Python's. Of what has more than a
    thousand elements, the number of elements counts.

    Args:
        modules: whose attributes are read.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        numbers = count()
        self._modules = [(module, _Seen.of(_own(module), 0, numbers)) for module in modules]

    def put_back(self) -> str:
        """Put back what has changed; return which attribute it was, such as "Net.calls", or ""."""
        changed = ""
        for module, before in self._modules:
            name = before.first_difference(_own(module))
            if name:
                changed = f"{type(module).__name__}.{name}"
                own = vars(module)
                for added in [each for each in own if each not in _TORCHS_OWN and each not in before.parts]:
                    del own[added]
                own.update({each: part.restored() for each, part in before.parts.items()})
        return changed


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN or name == "training"}


@dataclass(frozen=True)
class _Seen:
    """A value as it was: the object, and what was in it."""

    value: Any
    parts: dict[Any, _Seen]
    """by key, index or attribute; empty where it is not looked into"""
    size: int | None = None
    """of what is not looked into because it is too large"""
    copy: Any = None
    """of what has no parts, but values: a set, an array, the state of a generator"""

    @classmethod
    def of(cls, value: Any, depth: int, numbers: count[int]) -> _Seen:
        """Read a value, so deep in others; `numbers` counts how many were read."""
        ends = next(numbers) >= _MOST or depth >= _DEEPEST
        if isinstance(value, _PLAIN):
            return cls(value, {})
        if isinstance(value, _GENERATORS):
            return cls(value, {}, copy=_state(value))
        if isinstance(value, numpy.ndarray):
            return cls(value, {}, copy=value.copy()) if value.size <= _LARGEST else cls(value, {}, size=value.size)
        if isinstance(value, (list, tuple, dict, set, deque)):
            if ends or len(value) > _LARGEST:
                return cls(value, {}, size=len(value))
            if isinstance(value, set):
                return cls(value, {}, copy=set(value))
        elif ends or not _is_plain_object(value):
            return cls(value, {})
        return cls(value, {key: cls.of(part, depth + 1, numbers) for key, part in _parts(value).items()})

    def first_difference(self, now: Any) -> str:
        """Return the name of the first part that has changed, "" if none has; of a value without parts "it"."""
        if isinstance(self.value, _PLAIN):
            return "" if type(now) is type(self.value) and _is_equal(self.value, now) else "it"
        if isinstance(self.value, _GENERATORS):
            return "" if now is self.value and repr(self.copy) == repr(_state(now)) else "it"
        if self.copy is not None:
            return "" if now is self.value and _is_equal(self.copy, now) else "it"
        if self.size is not None:
            return (
                ""
                if now is self.value and (now.size if isinstance(now, numpy.ndarray) else len(now)) == self.size
                else "it"
            )
        if not self.parts and not isinstance(self.value, (list, dict, deque)):
            return "" if now is self.value or (isinstance(now, tuple) and now == self.value == ()) else "it"
        if type(now) is not type(self.value):
            return "it"
        parts = _parts(now)
        for key, part in self.parts.items():
            if key not in parts or part.first_difference(parts[key]):
                return str(key)
        return next((str(key) for key in parts if key not in self.parts), "")

    def restored(self) -> Any:
        """Return the object with what was in it."""
        value = self.value
        if isinstance(value, _GENERATORS):
            _set_state(value, self.copy)
        elif self.copy is not None:
            if isinstance(value, set):
                value.clear()
                value.update(self.copy)
            else:
                value[...] = self.copy
        elif self.size is None and isinstance(value, dict):
            held = {key: part.restored() for key, part in self.parts.items()}
            value.clear()
            value.update(held)
        elif self.size is None and isinstance(value, (list, deque)):
            held = [part.restored() for part in self.parts.values()]
            value.clear()
            value.extend(held)
        elif isinstance(value, tuple):
            for part in self.parts.values():
                part.restored()
        elif self.parts:
            own = vars(value)
            held = {key: part.restored() for key, part in self.parts.items()}
            own.clear()
            own.update(held)
        return value


def _state(generator: Any) -> Any:
    """Return the state of a generator in plain values, so that all of it can be compared."""
    if isinstance(generator, Generator):
        return bytes(generator.get_state().numpy())  # SYNC: once a recording, of a generator of a module's own
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, numpy.random.RandomState):
        return _in_lists(generator.get_state(legacy=False))
    return _in_lists(generator.bit_generator.state)


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, numpy.random.RandomState):
        generator.set_state(_in_arrays(state))
    else:
        generator.bit_generator.state = _in_arrays(state)


def _in_lists(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _in_lists(value) for key, value in state.items()}
    return (state.dtype.str, state.tolist()) if isinstance(state, numpy.ndarray) else state  # SYNC: none, NumPy's


def _in_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _in_arrays(value) for key, value in state.items()}
    return numpy.array(state[1], dtype=state[0]) if isinstance(state, tuple) else state


def _is_equal(before: Any, now: Any) -> bool:
    if isinstance(before, numpy.ndarray):
        return before.shape == now.shape and before.tobytes() == now.tobytes()
    return before == now or (before != before and now != now)  # NaN is the same NaN


def _is_plain_object(value: Any) -> bool:
    """Return whether a value is an object of somebody's own class, with nothing in it but attributes."""
    if isinstance(value, _FUNCTIONS) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in ("torch", "numpy", "builtins", "velodrome")


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, tuple, deque)):
        return dict(enumerate(value))
    return dict(vars(value))
