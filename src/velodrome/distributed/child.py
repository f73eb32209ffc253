"""One of the processes that `launch` starts: `python -m velodrome.distributed.child THREADS MODULE ARGUMENTS...`."""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """Set the number of threads before anything reads it, then run the module."""
    threads, module, *arguments = sys.argv[1:]
    # In this process, which was made for nothing else.
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    os.environ["VELODROME_LAUNCHER"] = "1"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
