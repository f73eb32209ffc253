"""How much memory is there for the taking: on a device, on the machine, and within what a container grants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.control_groups import GROUPS, own_groups
from velodrome.linux import ROOT, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

__all__ = ["available_bytes"]

_UNKNOWN = 1 << 62
# Limit, use, and the name of what of the use is cached files, which make room; of the second version of control groups, and of the first.
_FILES = ("memory.max", "memory.current", "inactive_file")
_OLD_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(device: torch.device, root: Path = ROOT) -> int:
    """Return how much memory is free on the device, within the control group's limit; a large number where that cannot be known.

    Args:
        device: CUDA's own memory, else that of the machine.
        root: of the file system; another one for tests.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    groups = [(each, _FILES) for each in own_groups(root)] + [(root / GROUPS / "memory", _OLD_FILES)]
    left = [_left(folder, *files) for folder, files in groups]
    return max(0, min([*_of_the_machine(root), *left]))


def _of_the_machine(root: Path) -> Iterator[int]:
    # Free pages alone leave out the page cache, which on a machine that has read its data is nearly all of the memory.
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and rest.split()[0].isdigit():
            yield int(rest.split()[0]) * 1024


def _left(folder: Path, limit_name: str, used_name: str, cached_name: str) -> int:
    limit, used = read_text(folder / limit_name), read_text(folder / used_name)
    if not (limit.isdigit() and used.isdigit()):  # "max" is no limit
        return _UNKNOWN
    stat = dict(line.split(maxsplit=1) for line in read_text(folder / "memory.stat").splitlines() if " " in line)
    cached = stat.get(cached_name, "0")
    return int(limit) - int(used) + (int(cached) if cached.isdigit() else 0)
