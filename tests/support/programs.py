"""Programs that tests start: what they find around them, and which processes they have."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment(*folders: str | Path) -> dict[str, str]:
    """Return the variables for a Python that imports what this one does, from these folders first, and computes with one thread."""
    path = [*map(str, folders), *(entry for entry in sys.path if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def ranks_of(pid: int) -> dict[int, int]:
    """Return the ids of the processes of a world that a process started, by rank; needs /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = folder.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        ranks = [int(each.removeprefix(b"RANK=")) for each in variables if each.startswith(b"RANK=")]
        if parent == pid and ranks:
            found[ranks[0]] = int(folder.name)
    return found
