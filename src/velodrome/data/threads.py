"""How many cores this process may use, and how many threads that leaves the loop beside its worker processes.

torch takes a thread for every core of the machine, also where a container or a scheduler grants a few of them. Threads that share a core
wait for one another at the end of every operation, spinning: a step was seen to take up to 30 times as long.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["limit_threads", "set_threads", "usable_cores"]

_OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ROOT = Path("/")
_set_by_us: int | None = None
_told: int | None = None


def usable_cores(root: Path = _ROOT) -> int:
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
    cores = len({_read(siblings / f"cpu{each}/topology/thread_siblings_list") or str(each) for each in own})
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = min(cores, _quota(root)) / (int(processes) if processes.isdigit() and int(processes) else 1)
    return max(1, int(share))


def set_threads(threads: int) -> None:
    """Set torch's threads to the number that a user asked for, which `limit_threads` then leaves alone."""
    global _told
    torch.set_num_threads(threads)
    _told = threads


def limit_threads(*, num_workers: int, is_on_cpu: bool) -> str:
    """Lower torch's threads so that they and the workers are no more than the cores; return what was done, or nothing.

    What the user has set is respected: OMP_NUM_THREADS, MKL_NUM_THREADS, `set_threads`, or a call of `torch.set_num_threads` with a number that torch does not
    take by itself. It stays lowered for the rest of the process: how a sum is divided among threads decides how it rounds.

    Args:
        num_workers: processes that fetch samples while the loop computes.
        is_on_cpu: the model computes on the CPU; a GPU's process needs one thread.
    """
    global _set_by_us
    threads = torch.get_num_threads()
    if any(os.environ.get(name) for name in _OF_THE_USER) or threads == _told or threads not in _taken_by_torch():
        return ""
    cores = usable_cores()
    wanted = max(1, cores - num_workers) if is_on_cpu else cores
    if threads <= wanted:
        return ""
    torch.set_num_threads(wanted)
    _set_by_us = wanted
    beside = f" beside {num_workers} workers" if num_workers and is_on_cpu else ""
    return (
        f"threads: {threads} -> {wanted}{beside}, for this process may use {cores} core{'s' * (cores != 1)} (OMP_NUM_THREADS or "
        f"torch.set_num_threads decides otherwise)"
    )


def _taken_by_torch() -> set[int | None]:
    """Return the numbers that torch takes where nobody says anything, and the one that was set here."""
    logical = os.cpu_count() or 1
    try:
        own = len(os.sched_getaffinity(0))
    except AttributeError:
        own = logical
    return {logical, logical // 2, own, own // 2, _set_by_us} - ({1, 0} if own > 1 else set())


def _quota(root: Path) -> float:
    """Return how many cores' time the control groups grant; infinite where they say nothing."""
    quota = float("inf")
    folder = root / "sys/fs/cgroup"
    own = next((line[3:] for line in _read(root / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    path = folder / own.strip("/")
    for each in (path, *path.parents):  # a limit of a group above holds too
        allowed, _, period = _read(each / "cpu.max").partition(" ")
        if allowed.isdigit() and period.isdigit():
            quota = min(quota, int(allowed) / int(period))
        if each == folder:
            break
    # The older kind of control groups, which -1 switches off.
    allowed, period = (_read(folder / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(quota, int(allowed) / int(period)) if allowed.isdigit() and period.isdigit() else quota


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
