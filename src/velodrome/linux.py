"""What Linux tells in files: of processes, and of this start of the machine. Elsewhere the answers are "", None, or nothing at all.

Sources: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, https://docs.kernel.org/filesystems/proc.html.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Process", "boot_id", "pid_space", "read_family", "read_process", "read_text", "status_bytes"]

ROOT = Path("/")
"""of the file system; tests give another one"""

# Counted from the field behind the name, which is the third: the state, its parent, four kinds of ticks, the start.
_PARENT, _TICKS, _START = 1, slice(11, 15), 19


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process, as the kernel describes it."""

    pid: int
    parent: int
    is_running: bool
    """False where it has ended, and nobody has asked for its exit code"""
    start: str
    """in the kernel's clock ticks: tells it from a later process with the same number"""
    ticks: int
    """how long it kept cores busy, with the children that it has waited for"""


def read_process(pid: int, root: Path = ROOT) -> Process | None:
    """Return what is known about a process; None where there is none, or nothing is told."""
    fields = read_text(root / f"proc/{pid}/stat").rpartition(")")[2].split()  # the name before it may hold anything
    try:
        return Process(
            pid=pid,
            parent=int(fields[_PARENT]),
            is_running=fields[0] not in ("Z", "X"),
            start=fields[_START],
            ticks=sum(int(each) for each in fields[_TICKS]),
        )
    except (IndexError, ValueError):
        return None


def read_family(pid: int, root: Path = ROOT) -> list[Process]:
    """Return a process, those that it started and those that they did, parents first; nothing where there is none.

    Cost: some 20 microseconds for each process of the machine.
    """
    numbers = [int(each.name) for each in (root / "proc").glob("[0-9]*") if each.name.isdigit()]
    everybody = [process for number in numbers if (process := read_process(number, root)) is not None]
    family = [each for each in everybody if each.pid == pid]
    for parent in family:  # it grows meanwhile
        family += [each for each in everybody if each.parent == parent.pid]
    return family


def boot_id(root: Path = ROOT) -> str:
    """Return the kernel's name for this start of the machine: the same in all its containers."""
    return read_text(root / "proc/sys/kernel/random/boot_id")


def pid_space(root: Path = ROOT) -> str:
    """Return the name of the space in which the numbers of this process's kind count: a container has its own."""
    try:
        return os.readlink(root / "proc/self/ns/pid")
    except OSError:
        return ""


def status_bytes(name: str, root: Path = ROOT) -> int | None:
    """Return one of the sizes of this process: "VmRSS", which is resident now, or "VmHWM", the most that ever was.

    Not getrusage: its maximum begins with that of the process that started this one.
    """
    for line in read_text(root / "proc/self/status").splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    return None


def read_text(path: Path) -> str:
    """Return what is in a file, stripped; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
