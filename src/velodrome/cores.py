"""How many cores this process may use: what threads, worker processes and processes that train together divide among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from velodrome.control_groups import GROUPS, own_groups
from velodrome.linux import ROOT, read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(root: Path = ROOT) -> int:
    """Return the physical cores that this process may keep busy: at least 1.

    Those of its affinity, two threads of one core counted once; no more than its control group's quota grants; divided among the processes
    that a launcher started on this machine (LOCAL_WORLD_SIZE).

    Args:
        root: of the file system; another one for tests.
    """
    try:
        own = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        own = set(range(os.cpu_count() or 1))
    siblings = root / "sys/devices/system/cpu"
    cores = len({read_text(siblings / f"cpu{each}/topology/thread_siblings_list") or str(each) for each in own})
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = min(cores, _quota(root)) / (int(processes) if processes.isdigit() and int(processes) else 1)
    return max(1, int(share))


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
