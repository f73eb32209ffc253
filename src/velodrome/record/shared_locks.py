"""Locks of the operating system on a file, and how far they reach: whether another machine sees them."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path

__all__ = ["Grip", "locks_are_seen_by_all", "look_at_lock", "try_lock"]


class Grip(Enum):
    """What came of trying for a lock."""

    TAKEN = "nobody else has it"
    HELD = "somebody else has it"
    UNKNOWN = "this file system has no locks"


_MOUNTS = Path("/proc/self/mountinfo")
# Disks of one machine: a file that another machine wrote was copied or carried here.
_LOCAL = {
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "tmpfs",
    "overlay",
    "f2fs",
    "bcachefs",
    "vfat",
    "exfat",
    "ntfs3",
}
# Shared ones that pass flock on to the other machines, by the options that switch that off (nfs(5), mount.lustre(8), mount.cifs(8)).
_SHARED = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "lustre": {"localflock", "noflock"},
    "gpfs": set[str](),
    "ceph": set[str](),
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
}
_LUSTRE_DEFAULT = "flock"  # has to be given: without it there are no locks


def try_lock(descriptor: int) -> Grip:
    """Take the lock of an open file for as long as it is open, unless somebody else has it."""
    return _lock(descriptor, shared=False)


def look_at_lock(descriptor: int) -> Grip:
    """Return what `try_lock` would, and leave the lock alone."""
    grip = _lock(descriptor, shared=True)
    if grip is Grip.TAKEN:
        _unlock(descriptor)
    return grip


def locks_are_seen_by_all(path: Path) -> bool:
    """Return whether a lock on this file that another machine held would be seen here; False when that is not known."""
    kind, options = _find_mount(path)
    if kind in _LOCAL:
        return True
    if kind == "lustre" and _LUSTRE_DEFAULT not in options:
        return False
    return kind in _SHARED and not options & _SHARED[kind]


def _find_mount(path: Path) -> tuple[str, set[str]]:
    """Return the kind of file system that holds a path, and its options; Linux only."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "", set()
    folder = Path(os.path.realpath(path.parent))
    best, found = -1, ("", set[str]())
    for line in lines:
        before, _, after = line.partition(" - ")
        parts, kinds = before.split(" "), after.split(" ")
        if len(parts) < 6 or len(kinds) < 3:
            continue
        point = Path(parts[4].replace("\\040", " "))
        if folder.is_relative_to(point) and len(point.parts) >= best:  # of two at one point the later hides the earlier
            best, found = len(point.parts), (kinds[0], {*parts[5].split(","), *kinds[2].split(",")})
    return found


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # behind the text: Windows does not let others read what is locked

    def _lock(descriptor: int, *, shared: bool) -> Grip:
        del shared  # there is one kind only
        try:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return Grip.HELD
        return Grip.TAKEN

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, *, shared: bool) -> Grip:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return Grip.HELD
        except OSError:  # ENOLCK, ENOTSUP
            return Grip.UNKNOWN
        return Grip.TAKEN

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
