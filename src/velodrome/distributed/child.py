"""One of the processes that `launch` starts: `python -m velodrome.distributed.child LAUNCHER THREADS MODULE ARGUMENTS...`."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""of Linux's prctl(2)"""


def main() -> None:
    """Tie this process to its launcher, set the number of threads before anything reads it, then run the module."""
    launcher, threads, module, *arguments = sys.argv[1:]
    _end_with(int(launcher))
    # In this process, which was made for nothing else. The second name tells a share from a number that the user wants.
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = os.environ["VELODROME_THREADS"] = threads
    os.environ["VELODROME_LAUNCHER"] = "1"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(launcher: int) -> None:
    """Have the system send SIGTERM when the launcher is killed: nobody else would, and a run that is told so saves and leaves.

    Without it processes of a killed launcher train on, unseen, and hold the run's lock and the device. Linux only.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it was killed before this line
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
