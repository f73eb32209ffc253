"""Room on the disk: what keeping checkpoints needs, and what their volume has."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.checkpoint.policy import Checkpointing

__all__ = ["Room", "folder_bytes", "free_bytes", "nearest_folder", "num_kept", "readable_bytes"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a run's checkpoints need, against what there is."""

    path: Path
    """on the volume that they are written to: the run directory, or the nearest folder above it that exists"""
    checkpoint_bytes: int
    kept: int
    """checkpoints at most, with the one that is being written before an older one goes"""
    there: int = 0
    """of these, how many are there already"""
    free: int | None = None
    """bytes; None where the volume does not say"""

    @property
    def needed(self) -> int:
        """Bytes that are still to be written."""
        return self.checkpoint_bytes * max(0, self.kept - self.there)

    @property
    def problem(self) -> str:
        """What is wrong, with the numbers and what to do; "" where there is room."""
        if self.free is None or self.free >= self.needed:
            return ""
        return (
            f"The volume of {self.path} has {readable_bytes(self.free)} free, and {self.kept} checkpoints of about "
            f"{readable_bytes(self.checkpoint_bytes)} need {readable_bytes(self.needed)}"
            f"{f' besides the {self.there} that are there' if self.there else ''}. Free some space, keep fewer (keep_last, keep_best), or "
            f"choose a run directory on another volume."
        )


def num_kept(policy: Checkpointing, *, kept_besides: int = 0) -> int:
    """Return how many checkpoints lie on the disk at most: one more is written before an old one is removed.

    Args:
        policy: of the run.
        kept_besides: for a value of their own, by callbacks.
    """
    return max(policy.keep_last, 2) + policy.keep_best + kept_besides + 1


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists: what will be made there lies on its volume."""
    path = path.expanduser().absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int | None:
    """Return what is free on the volume that a path, which need not exist, lies or will lie on; None where it does not say."""
    try:
        return shutil.disk_usage(nearest_folder(path)).free
    except OSError:
        return None


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable_bytes(num: int) -> str:
    """Return a size in words.

    >>> readable_bytes(1_234_567)
    '1.2 MB'
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num >= size:
            return f"{num / size:.1f} {unit}"
    return f"{num} bytes"
