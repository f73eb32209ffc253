"""Finding the lines that make the loop wait for the device: calls that give a tensor's values to Python.

In a few batches every call of torch's functions from Python passes through a `TorchFunctionMode`, which times those that read. On CUDA
the driver's own check is on as well, for what waits without being among them.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["READS", "FoundWaits", "Wait", "WaitFinder"]

READS = {
    "item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__complex__", "__array__", "__format__", "__repr__",
    "nonzero", "argwhere", "is_nonzero", "equal", "allclose", "masked_select", "unique", "unique_consecutive", "bincount",
}  # fmt: skip
"""calls that give a tensor's values to Python, or whose result has a size that only the values tell"""
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@dataclass
class Wait:
    """A line that waited."""

    file: str
    line: int
    call: str
    """which read it is, such as "item" """
    count: int = 0
    seconds: float = 0.0

    def say(self, num_batches: int, *, on_device: bool) -> str:
        """Return a sentence: place, source, how often, cost."""
        name = os.path.relpath(self.file) if os.path.isabs(self.file) and not _is_far(self.file) else self.file
        source = linecache.getline(self.file, self.line).strip()[:100]
        times = self.count / max(1, num_batches)
        cost = f", {self.seconds / self.count * 1e6:,.1f} us each" if self.seconds else ""
        what = "makes the loop wait for the device" if on_device else "reads a tensor's values"
        shown = f": `{source}`" if source else ""
        return f"{name}:{self.line} {what}{shown} ({self.call}, {times:g} times a batch{cost})."


class FoundWaits:
    """The lines of the user's that waited.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_on_cpu = device.type == "cpu"
        self._by_line: dict[tuple[str, int, str], Wait] = {}

    def add(self, call: str, seconds: float, frame: FrameType | None) -> None:
        """Count a wait that a frame asked for; one of the trainer's own is left out."""
        place = _place(frame)
        if place is not None:
            wait = self._by_line.setdefault((*place, call), Wait(*place, call))
            wait.count += 1
            wait.seconds += seconds

    def sentences(self, num_batches: int, *, least: int = 1) -> list[str]:
        """Return a sentence a line, the most expensive one first.

        Args:
            num_batches: that were looked at.
            least: how often a line must have waited in these.
        """
        found = sorted((each for each in self._by_line.values() if each.count >= least), key=lambda wait: -wait.seconds)
        lines = [wait.say(num_batches, on_device=not self._is_on_cpu) for wait in found]
        if lines and self._is_on_cpu:
            lines[-1] += (
                " On a CPU that costs next to nothing; on an accelerator each of these waits until the device has done all it was asked for."
            )
        return lines


class WaitFinder:
    """Finds the user's lines that wait, in some batches.

    Reads of the trainer's own are left out: between log points there are none that wait.

    Args:
        batches: which ones.
        device: of the model.
        say: shows a line to people.
    """

    def __init__(self, batches: range, *, device: torch.device, say: Callable[[str], None]) -> None:
        self.batches = batches
        self.speaks = True
        self.sees_fetching = device.type != "cpu"
        """what a dataset reads of its own on the CPU waits for nothing, and on another device the driver tells which is which"""
        self._device = device
        self._say = say
        self._found = FoundWaits(device)
        self.num_seen = 0
        self._has_said = False

    @contextmanager
    def around(self, number: int) -> Iterator[None]:
        """Look at a batch."""
        del number
        mode = _Reads(self._found.add, self._device.type)
        with mode, self._asking_the_driver(mode):
            yield

    @property
    def sentences(self) -> list[str]:
        """What was found, the most expensive line first."""
        return self._found.sentences(self.num_seen)

    def end(self) -> None:
        """Say what was found, once."""
        if self._has_said:
            return
        self._has_said = True
        lines = self.sentences
        for line in lines:
            self._say(line)
        if not self.num_seen:
            self._say(f"No line was looked at: the run had fewer than {self.batches.start + 1} batches.")
        elif not lines:
            self._say(f"No line waited for the device in {self.num_seen} batches of training.")

    @contextmanager
    def _asking_the_driver(self, mode: _Reads) -> Iterator[None]:
        if self._device.type != "cuda":
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        with self._hearing_warnings(mode):
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def _hearing_warnings(self, mode: _Reads) -> Iterator[None]:
        """Take the driver's warnings for what they are; the mode has told of those that come from inside of a read."""
        with warnings.catch_warnings():
            shown = warnings.showwarning

            def show(message: Any, *rest: Any, **more: Any) -> None:
                if "synchronizing CUDA operation" not in str(message):
                    shown(message, *rest, **more)
                elif not mode.is_inside:
                    self._found.add("a synchronizing operation", 0.0, sys._getframe(1))

            warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
            # What torch says when it is switched on: that it does not see every wait.
            warnings.filterwarnings("ignore", message=".*Synchronization debug mode is a prototype.*")
            warnings.showwarning = show
            yield


class _Reads(TorchFunctionMode):
    """Tells of every call that gives values to Python, with what it took."""

    def __init__(self, add: Callable[[str, float, FrameType | None], None], device: str) -> None:
        super().__init__()
        self._add, self._device = add, device
        self.is_inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not (
            name in READS or (name == "__getitem__" and _by_mask(args)) or (name == "to" and _to_cpu(args, kwargs))
        ):
            return func(*args, **(kwargs or {}))
        tensor = next((each for each in args if isinstance(each, torch.Tensor)), None)
        if tensor is None or tensor.device.type != self._device:
            return func(*args, **(kwargs or {}))
        began, self.is_inside = perf_counter(), True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.is_inside = False
            self._add(name, perf_counter() - began, sys._getframe(1))


def _by_mask(args: Any) -> bool:
    """Whether an index is a mask: how many elements it takes, only the device knows."""
    index = args[1] if len(args) > 1 else None
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in parts)


def _to_cpu(args: Any, kwargs: Any) -> bool:
    """Whether a tensor is moved from a device to the CPU."""
    wanted = [*args[1:], *(kwargs or {}).values()]
    is_away = isinstance(args[0], torch.Tensor) and args[0].device.type != "cpu"
    return is_away and any(str(each) == "cpu" for each in wanted if isinstance(each, (str, torch.device)))


def _place(frame: FrameType | None) -> tuple[str, int] | None:
    """Return file and line of the user's code that a call came from; None where it is the trainer's own.

    A library's line (a metric's, say) stands for itself only where no code of the user's called it. Python's own files stand for nobody: the
    warning that the driver gives passes through one, and `statistics.mean` of tensors reads for whoever called it.
    """
    innermost = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, "<frozen")):
            if file.startswith(_OURS):
                return innermost
            is_library = any(part in file for part in _LIBRARIES)  # often below the folder of Python's own files
            if not is_library and not file.startswith(_STANDARD):
                return file, frame.f_lineno
            if is_library:
                innermost = innermost or (file, frame.f_lineno)
        frame = frame.f_back
    return innermost


def _is_far(file: str) -> bool:
    """Whether a path relative to the working folder would not be the shorter one."""
    try:
        return os.path.relpath(file).startswith("..")
    except ValueError:  # on another drive
        return True
