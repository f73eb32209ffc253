"""What other programs take of the cores while something is timed: figures from then say more about them than about the recipe.

Linux counts how long all cores were busy, for whom a hypervisor took them away included; less what this process and those below it used,
that is what others had. Where the system does not tell, nobody is suspected.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from velodrome.linux import ROOT, read_family, read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Usage", "fraction_of_others", "read_usage"]

# user, nice, system, irq, softirq, steal: https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
_BUSY = (0, 1, 2, 5, 6, 7)
_LEAST_S = 0.05  # less is a few ticks of the clock


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How long cores have been busy so far."""

    at: float
    """seconds, of a clock that begins anywhere"""
    all_s: float
    """for anybody, since the system started; summed over its processors"""
    own_s: float
    """for this process and all below it"""
    processors: int


def read_usage(root: Path = ROOT) -> Usage | None:
    """Return how long cores have been busy so far; None where the system does not tell.

    Args:
        root: of the file system; another one for tests.
    """
    try:
        lines = read_text(root / "proc/stat").splitlines()
        total = [int(each) for each in lines[0].split()[1:]]
        busy = sum(total[field] for field in _BUSY)
        own = sum(each.ticks for each in read_family(os.getpid(), root))
        ticks_a_second = os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError, AttributeError):
        return None
    processors = sum(line.startswith("cpu") for line in lines) - 1
    return Usage(
        at=perf_counter(), all_s=busy / ticks_a_second, own_s=own / ticks_a_second, processors=max(1, processors)
    )


def fraction_of_others(before: Usage | None, after: Usage | None, *, processors: int) -> float:
    """Return what share of its processors this process missed because others kept them busy: 0 of none, and where nobody knows.

    Args:
        before, after: what was read at the beginning and at the end.
        processors: that the process may use, each thread of a core counted; where the machine has more, others may have those.

    >>> first = Usage(at=0.0, all_s=100.0, own_s=10.0, processors=4)
    >>> fraction_of_others(first, Usage(at=10.0, all_s=135.0, own_s=15.0, processors=4), processors=4)  # 3 of 4 cores for 10 s
    0.75
    """
    if before is None or after is None or after.at - before.at < _LEAST_S:
        return 0.0
    elapsed = after.at - before.at
    others = max(0.0, after.all_s - before.all_s - (after.own_s - before.own_s)) / elapsed
    missing = processors - (after.processors - others)
    return min(1.0, max(0.0, missing / processors))
