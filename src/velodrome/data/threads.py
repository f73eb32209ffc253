"""How many threads the cores leave the loop beside its worker processes.

torch takes a thread for every core of the machine, also where a container or a scheduler grants a few of them. Threads that share a core
wait for one another at the end of every operation, spinning: a step was seen to take up to 30 times as long.
"""

from __future__ import annotations

import os

import torch

from velodrome.cores import usable_cores

__all__ = ["limit_threads", "set_threads"]

_OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SHARE = "VELODROME_THREADS"
"""of a process of our launcher's (distributed/child.py): what it put into OMP_NUM_THREADS, where the user had not"""
_set_by_us: int | None = None
_told: int | None = None


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
        is_on_cpu: the model computes on the CPU. Where it does not, the loop's threads have little to do and workers are not counted
            against them: the cores are still the limit.
    """
    global _set_by_us
    threads = torch.get_num_threads()
    if _is_told_by_environment() or threads == _told or threads not in _taken_by_torch():
        return ""
    cores = usable_cores()
    wanted = max(1, cores - num_workers) if is_on_cpu else cores
    if threads <= wanted:
        return ""
    torch.set_num_threads(wanted)
    _set_by_us = wanted
    beside = f" beside {num_workers} worker{'s' * (num_workers != 1)}" if num_workers and is_on_cpu else ""
    return (
        f"threads: {threads} -> {wanted}{beside}, for this process may use {cores} core{'s' * (cores != 1)} (OMP_NUM_THREADS or "
        f"torch.set_num_threads decides otherwise)"
    )


def _is_told_by_environment() -> bool:
    """Whether the user's variables say how many; a share that our launcher gave this process is no wish of theirs."""
    of_the_launcher = {"OMP_NUM_THREADS": os.environ.get(_SHARE)}
    return any(os.environ.get(name) not in (None, "", of_the_launcher.get(name)) for name in _OF_THE_USER)


def _taken_by_torch() -> set[int | None]:
    """Return the numbers that torch takes where nobody says anything, the launcher's share, and the one that was set here."""
    logical = os.cpu_count() or 1
    try:
        own = len(os.sched_getaffinity(0))
    except AttributeError:
        own = logical
    share = os.environ.get(_SHARE, "")
    by_torch = {logical, logical // 2, own, own // 2, _set_by_us} - ({1, 0} if own > 1 else set())
    return by_torch | ({int(share)} if share.isdigit() else set())
