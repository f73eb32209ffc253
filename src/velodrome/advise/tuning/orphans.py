"""A process of a trial ends when the one that tunes is gone, however it went, and whatever the trial is doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from time import sleep

__all__ = ["end_without"]

_LOOK_EVERY_S = 0.5
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def end_without(parent: int) -> None:
    """End this process, and those that it started, soon after its parent has ended.

    A thread looks, which it cannot while code outside Python holds the interpreter's lock; Linux is asked besides, for this process and for
    those that it will fork: the workers of a loader, which may hang too.

    Args:
        parent: the process that must be there.
    """
    threading.Thread(target=_watch, args=(parent,), name="velodrome-tune-parent", daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            prctl = ctypes.CDLL(None).prctl
            prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
            forking = [0]

            def begin_child() -> None:
                prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
                if os.getppid() != forking[0]:  # it was gone before this was asked for
                    os._exit(1)

            os.register_at_fork(before=lambda: forking.__setitem__(0, os.getpid()), after_in_child=begin_child)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        sleep(_LOOK_EVERY_S)
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():  # a session of its own: with all that it started
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
