"""The control groups of this process: containers and schedulers grant a process less than the machine has.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.linux import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["GROUPS", "own_groups"]

GROUPS = "sys/fs/cgroup"


def own_groups(root: Path) -> Iterator[Path]:
    """Yield the folder of this process's group and those of the groups above, whose limits hold too; of the second version.

    Args:
        root: of the file system; another one for tests.
    """
    folder = root / GROUPS
    own = next((line[3:] for line in read_text(root / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    path = folder / own.strip("/")
    for each in (path, *path.parents):
        yield each
        if each == folder:
            return
