"""The signals that ask a run to end: handlers that are there while it is under way, and those before them put back."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["SignalWatch"]

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_TWICE_S = 2.0
"""a second SIGINT within this time is meant: now, whatever is under way"""


class SignalWatch:
    """Tells a run of SIGINT, SIGTERM and SIGUSR1 instead of ending the process.

    A handler that the user had is called too, afterwards. A signal that was ignored stays so. Inside of another run of this process
    nothing is done: the outer one decides. Python gives signals to the main thread only; a run elsewhere hears of none.

    Args:
        tell: called with the number, between any two instructions of the main thread: it may set things, and raise.
    """

    def __init__(self, tell: Callable[[signal.Signals], None]) -> None:
        self._tell = tell
        self._previous: dict[int, Any] = {}
        self._process = 0
        self._interrupted_at = -_TWICE_S

    def begin(self) -> None:
        """Put the handlers in place."""
        if threading.current_thread() is not threading.main_thread():
            return
        found = {number: signal.getsignal(number) for number in _NUMBERS}
        if any(isinstance(getattr(handler, "__self__", None), SignalWatch) for handler in found.values()):
            return
        self._process, self._interrupted_at = os.getpid(), -_TWICE_S
        for number, handler in found.items():
            if (
                handler is not None and handler is not signal.SIG_IGN
            ):  # None: not made by Python, and not to be put back by it
                self._previous[number] = handler
                signal.signal(number, self._handle)

    def end(self) -> None:
        """Put back the handlers that were there, unless somebody has put others in place meanwhile."""
        previous, self._previous = self._previous, {}
        with suppress(ValueError):  # a generator that was left may be closed by another thread
            for number, handler in previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number, signal.SIG_DFL)
        if os.getpid() != self._process:
            _handle_in_child(number, previous)
            return
        if number == signal.SIGINT:
            before, self._interrupted_at = self._interrupted_at, monotonic()
            if self._interrupted_at - before < _TWICE_S:
                raise KeyboardInterrupt
        self._tell(signal.Signals(number))
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)


def _handle_in_child(number: int, previous: Any) -> None:
    """Do in a process that was forked from this one what it would have done without us."""
    from torch.utils.data import get_worker_info

    # A terminal sends Ctrl-C to all: workers go on, so that the batch under way can be finished; their loader ends them.
    if number == signal.SIGINT and get_worker_info() is not None:
        return
    signal.signal(number, previous)
    os.kill(os.getpid(), number)
