"""Random numbers of the data as a function of where they are drawn: augmentation = f(seed, epoch, index).

Before a sample is fetched, the generators that datasets draw from (Python's, NumPy's old global one and torch's on the CPU) are
seeded from a hash of seed, epoch and index. What came before does not matter then: neither worker processes nor prefetching, batch
size, number of processes, or where a run was interrupted. In the training process they are put back after each batch, so that
dropout draws what it would have drawn without.

Cost (torch 2.13, NumPy 2.4, best of five): 11.5 microseconds a sample, and 25 a batch for putting them back in the training process only; both
measured while other work kept the machine's two cores busy. The parts, measured when it was quiet: Python's generator 3.8, NumPy's 1.6,
torch's 1.1, a hash 0.7. Data in memory are not read sample by sample, and pay neither. `torch.manual_seed` would take 125, because it
also asks for every accelerator.
"""

from __future__ import annotations

import ctypes
import hashlib
import operator
import random
from functools import cache
from typing import Any, Self

import numpy
import torch

__all__ = ["GeneratorsKept", "epoch_key", "name_of", "seed_generators"]


def epoch_key(seed: int, epoch: int) -> bytes:
    """Return what the seeds of one epoch are hashed from."""
    return hashlib.sha256(f"samples:{seed}:{epoch}".encode()).digest()


def name_of(index: Any) -> bytes:
    """Return the index of a sample as bytes: numbers of any kind by their value, other keys as they are written.

    >>> name_of(7), name_of(torch.tensor(7)), name_of("7.png")
    (b'7', b'7', b"'7.png'")
    """
    try:
        return b"%d" % operator.index(index)
    except TypeError:
        return repr(index).encode()


def seed_generators(key: bytes, name: bytes, device: torch.device | None = None) -> None:
    """Seed the global generators for what comes now.

    Args:
        key: of the epoch.
        name: of the sample or batch within it.
        device: also its generator, where it is a CUDA device.
    """
    digest = hashlib.sha256(key + name).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    random.seed(int.from_bytes(digest[8:16], "little"))
    numpy.random.seed(int.from_bytes(digest[16:20], "little"))
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(int.from_bytes(digest[20:28], "little") >> 1)


class GeneratorsKept:
    """A context that puts the global generators back as they were: what is drawn inside was never drawn.

    Args:
        device: its generator too, where it is a CUDA device; the CPU's are always kept.
    """

    __slots__ = ("_cuda", "_numpy", "_python", "_torch")

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda: Any = None
        if device is not None and device.type == "cuda":
            self._cuda = torch.cuda.default_generators[device.index or 0]

    def __enter__(self) -> Self:
        if self._cuda is not None:
            self._cuda = self._cuda, self._cuda.get_state()
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy = _numpy_state()
        return self

    @property
    def has_moved(self) -> bool:
        """Whether anything was drawn, by Python, NumPy or torch on the CPU, since the context was entered."""
        return (
            _comparable(_numpy_state()) != _comparable(self._numpy)
            or random.getstate() != self._python
            or not torch.equal(torch.default_generator.get_state(), self._torch)  # SYNC: on the CPU
        )

    def __exit__(self, *exc_info: object) -> None:
        _set_numpy_state(self._numpy)
        random.setstate(self._python)
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            generator, state = self._cuda
            generator.set_state(state)


# NumPy's `get_state` and `set_state` take 33 microseconds each, because they go through 624 Python numbers. The state that nothing
# has drawn from since it was last put back is known already: comparing its memory takes 0.5.

_NUM_BYTES = 4 * 624 + 4  # of the generator's words and of its position among them
_last: tuple[bytes, Any] = (b"", None)


def _numpy_state() -> tuple[bytes, Any]:
    """Return the memory of NumPy's old global generator and, where that is not all of it, its whole state."""
    global _last
    address = _numpy_address()
    words = ctypes.string_at(address, _NUM_BYTES) if address else b""
    known, whole = _last
    if words and words == known and whole is None:
        return _last
    state = numpy.random.get_state(legacy=False)
    # The second number of a pair of normal ones lies outside of that memory, and may be used without changing it.
    _last = words, state if state["has_gauss"] or not words else None
    return _last


def _comparable(state: tuple[bytes, Any]) -> tuple[Any, ...]:
    """Return a state of NumPy's generator as what compares to one truth: arrays as their bytes."""
    words, whole = state
    if whole is None:
        return (words,)
    inner = [
        value.tobytes() if isinstance(value, numpy.ndarray) else value for _, value in sorted(whole["state"].items())
    ]
    return words, inner, whole.get("has_gauss"), whole.get("gauss")


def _set_numpy_state(state: tuple[bytes, Any]) -> None:
    words, whole = state
    if whole is not None:
        numpy.random.set_state(whole)
        return
    numpy.random.seed(0)  # drops the second number of a pair
    ctypes.memmove(_numpy_address(), words, _NUM_BYTES)


def _numpy_address() -> int:
    """Return where the words of NumPy's old global generator lie; 0 where they lie in an order that is not known here."""
    generator: Any = numpy.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
    return generator.ctypes.state_address if _has_known_layout(type(generator)) else 0


@cache
def _has_known_layout(kind: type) -> bool:
    """Return whether the memory of a bit generator is what `_NUM_BYTES` takes it for; found out by looking at it, once."""
    if kind is not numpy.random.MT19937:
        return False
    example = kind(5)
    state = example.state["state"]
    expected = state["key"].astype(numpy.uint32).tobytes() + numpy.int32(state["pos"]).tobytes()
    return ctypes.string_at(example.ctypes.state_address, _NUM_BYTES) == expected
