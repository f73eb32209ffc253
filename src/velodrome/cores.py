"""How many cores this process may use: what threads, worker processes and processes that train together divide among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from velodrome.control_groups import GROUPS, own_groups
from velodrome.linux import ROOT, read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["usable_cores", "usable_processors"]


def usable_cores(root: Path = ROOT) -> int:
    """Return the physical cores that this process may keep busy: at least 1.

    Those of its affinity, two threads of one core counted once; no more than its control group's quota grants; divided among the processes
    that a launcher started on this machine (LOCAL_WORLD_SIZE).

    Args:
        root: of the file system; another one for tests.
    """
    siblings = root / "sys/devices/system/cpu"
    own = _affinity()
    return _granted(
        len({read_text(siblings / f"cpu{each}/topology/thread_siblings_list") or str(each) for each in own}), root
    )


def usable_processors(root: Path = ROOT) -> int:
    """Return what `usable_cores` does with each thread of a core counted, as the system counts the time of its processors."""
    return _granted(len(_affinity()), root)


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return set(range(os.cpu_count() or 1))


def _granted(number: int, root: Path) -> int:
    """Return how many of so many this process may keep busy."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(min(number, _quota(root)) / (int(processes) if processes.isdigit() and int(processes) else 1)))


def _quota(root: Path) -> float:
    """Return how many cores' time the control groups grant; infinite where they say nothing."""
    quota = float("inf")
    for each in own_groups(root):
        allowed, _, period = read_text(each / "cpu.max").partition(" ")
        if allowed.isdigit() and period.isdigit():
            quota = min(quota, int(allowed) / int(period))
    # The older kind of control groups, which -1 switches off.
    allowed, period = (read_text(root / GROUPS / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(quota, int(allowed) / int(period)) if allowed.isdigit() and period.isdigit() else quota
