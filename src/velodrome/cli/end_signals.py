"""The signals that tell a program to end, made into what Ctrl-C is: whatever is under way cleans up behind itself."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Signals", "ended_in_order"]

_HEARD = ("SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed


@dataclass
class Signals:
    """Which signal told the program to end."""

    number: int = int(signal.SIGINT)

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect."""
        return 128 + self.number


@contextmanager
def ended_in_order() -> Iterator[Signals]:
    """Make of the other signals that end a program what Ctrl-C is: trials are ended, files that are half written removed.

    One that is ignored stays so (`nohup`). Handlers are put back afterwards; in another thread than the first one there are none.
    """
    found, before = Signals(), {}

    def interrupt(number: int, frame: Any) -> None:  # Any: a frame
        found.number = number
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in _HEARD:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
