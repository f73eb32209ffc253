"""One thread that works through jobs in order, and lives only as long as there are any."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Runs jobs one after another beside the caller.

    There is no thread while there is nothing to do: none that a fork would leave half-copied, and none that would keep the
    interpreter from its end. One that has work is waited for at the interpreter's end: a save that was begun is finished.
    """

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job after those that were submitted before. It must not raise: nobody would hear of it."""
        with self._lock:
            self._jobs.append(job)
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._work, name="velodrome-save", daemon=False)
            try:
                self._thread.start()
                return
            except RuntimeError:  # no more threads for this user, or the interpreter is at its end
                self._thread = None
        self._work()

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way or waits."""
        return self._thread is not None

    def wait(self) -> None:
        """Return when there is nothing left to do."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job()
