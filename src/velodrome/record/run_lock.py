"""One writer a run directory: a lock of the operating system, which ends with its process, and a note that says whose it is.

```text
lock.json      held by flock from a run's begin to its end, removed at its end
               {"pid": 4711, "host": "gpu3", "boot": "...", "pid_space": "...", "start": "...", "since": "..."}
free           nobody holds the lock: a file that is there was left by a process that was killed, and is taken over
refused        somebody holds it; or the file comes from another machine, and locks may not be seen from machine to machine here
```

The operating system decides, because a number of a process proves nothing: numbers are used again, and mean nothing in another
container or machine. The note only tells people who it is.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import platform
import shlex
import stat
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from velodrome.errors import RefusedError
from velodrome.linux import boot_id, pid_space, read_process
from velodrome.record.shared_locks import Grip, locks_are_seen_by_all, look_at_lock, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["LOCK_NAME", "Holder", "RunLock", "find_holder", "refuse_if_held"]

LOCK_NAME = "lock.json"
_MAX_NOTE_BYTES = 4096
_TRIES, _PAUSE_S = 5, 0.02  # somebody who only looks holds the lock for microseconds


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock, as the note says it; texts are empty where they are not known."""

    pid: int = 0
    host: str = ""
    boot: str = ""  # the kernel's id of this start of the machine: the same in all its containers
    pid_space: str = ""  # in which the pid counts: a container has its own
    start: str = ""  # of the process, in the kernel's clock ticks: tells it from a later one with the same number
    since: str = ""

    @classmethod
    def of_this_process(cls) -> Holder:
        """Describe the process that asks."""
        return cls(
            pid=os.getpid(),
            host=platform.node(),
            boot=boot_id(),
            pid_space=pid_space(),
            start=_read_start(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """Read a note; one that was cut short, or is not of this kind, names nobody."""
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(given, dict):
            return cls()
        kinds = {field.name: int if field.name == "pid" else str for field in fields(cls)}
        return cls(**{name: given[name] for name, kind in kinds.items() if type(given.get(name)) is kind})

    def __str__(self) -> str:
        """Return `process 4711 on "gpu3", since 2026-03-01T10:00:00+00:00`."""
        if not self.pid:
            return "a process that left no name"
        own = " (this very process)" if self == self._with_own_since() else ""
        return f"process {self.pid} on {json.dumps(self.host)}{own}, since {self.since or 'an unknown time'}"

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it ran under the kernel that runs now, or before this machine was started again."""
        boot = boot_id()
        return (bool(boot) and self.boot == boot) or self.host == platform.node() or not self.pid

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False where that cannot be told."""
        if not self.pid or not self.start or self.boot != boot_id() or self.pid_space != pid_space():
            return False
        return _read_start(self.pid) != self.start

    @property
    def is_running(self) -> bool:
        """Whether the process is known to run; False where that cannot be told."""
        known = self.pid and self.start and self.boot == boot_id() and self.pid_space == pid_space()
        return bool(known) and _read_start(self.pid) == self.start

    def _with_own_since(self) -> Holder:
        own = Holder.of_this_process()
        return Holder(**{**asdict(own), "since": self.since})


class RunLock:
    """The right to write into a run directory.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor = -1
        _ours.add(self)

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor >= 0

    def acquire(self) -> Holder | None:
        """Take the lock; a second call does nothing.

        Returns:
            Who left it behind, if anybody did.
        Raises:
            RefusedError: another process, or another run of this one, holds it.
            OSError: the file cannot be written.
        """
        if self.is_held:
            return None
        before = Holder()
        for _ in range(_TRIES):
            descriptor = _open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                before = Holder.parse(os.read(descriptor, _MAX_NOTE_BYTES))
                is_new = os.fstat(descriptor).st_size == 0
                grip = try_lock(descriptor)
                if grip is Grip.TAKEN or (grip is Grip.UNKNOWN and not before.is_running):
                    if not _is_at(self._path, descriptor):  # its holder ended, and removed it, just now
                        continue
                    self._refuse_another_machine(before)
                    self._write_note(descriptor)
                    self._descriptor, descriptor = descriptor, -1
                    return None if is_new else before
                if before.is_gone:  # a child of the process that was killed still has the file open
                    with suppress(FileNotFoundError):
                        if _is_at(self._path, descriptor):
                            self._path.unlink()
                    continue
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            time.sleep(_PAUSE_S)
        raise _in_use(self._path.parent, find_holder(self._path.parent) or before)

    def release(self) -> None:
        """Give the lock back and remove its file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        # Removed before it is let go, so that nobody's new file is removed; what a moved or removed folder lacks is no fault.
        with suppress(OSError):
            if _is_at(self._path, descriptor):
                self._path.unlink()
        with suppress(OSError):
            os.close(descriptor)

    def forget_in_child(self) -> None:
        """Close the copy that a forked process got: the lock is its parent's, and must not live longer than that."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def _refuse_another_machine(self, before: Holder) -> None:
        if before.is_of_this_machine or locks_are_seen_by_all(self._path):
            return
        raise RefusedError(
            f"run_dir={str(self._path.parent)!r} is locked by {before}, which is another machine. Whether that process still writes "
            f"cannot be seen from here, and a run directory takes one writer at a time; nothing was changed. If it has ended, or the "
            f"folder was copied from there, remove the lock: rm {shlex.quote(str(self._path))}",
            path=str(self._path.parent),
            pid=before.pid,
            host=before.host,
        )

    def _write_note(self, descriptor: int) -> None:
        note = json.dumps(asdict(Holder.of_this_process())).encode() + b"\n"
        with suppress(OSError):  # a full disk: the lock holds without its note
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, note)


def find_holder(folder: Path) -> Holder | None:
    """Return who writes into a run directory now, or None; nothing is changed.

    Raises:
        RefusedError: the lock is no plain file.
    """
    path = folder / LOCK_NAME
    try:
        descriptor = _open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = Holder.parse(os.read(descriptor, _MAX_NOTE_BYTES))
        if holder.is_gone:
            return None
        grip = look_at_lock(descriptor)
        if grip is Grip.HELD or (grip is Grip.UNKNOWN and holder.is_running):
            return holder
        return None if holder.is_of_this_machine or locks_are_seen_by_all(path) else holder
    finally:
        os.close(descriptor)


def refuse_if_held(folder: Path) -> None:
    """Refuse a run directory that another process, or another run of this one, writes into.

    Raises:
        RefusedError: names who it is.
    """
    holder = find_holder(folder)
    if holder is not None and holder.is_of_this_machine:
        raise _in_use(folder, holder)


def _in_use(folder: Path, holder: Holder) -> RefusedError:
    return RefusedError(
        f"run_dir={str(folder)!r} is being written to by {holder}. A run directory takes one writer at a time; nothing was changed. "
        f"Wait until that run has ended, or give another run_dir.",
        path=str(folder),
        pid=holder.pid,
        host=holder.host,
    )


def _open(path: Path, flags: int) -> int:
    # Neither through a link, nor waiting for the other end of a pipe.
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _no_plain_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_plain_file(path)
    return descriptor


def _no_plain_file(path: Path) -> RefusedError:
    return RefusedError(
        f"{path} is a link, a folder or a device. The lock of a run is a plain file in its folder; nothing was changed. Remove it: "
        f"rm {shlex.quote(str(path))}",
        path=str(path),
    )


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there, held = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _read_start(pid: int) -> str:
    """Return when a process was started, "" when it does not run."""
    process = read_process(pid)
    return process.start if process is not None and process.is_running else ""


# Weak: a trainer that is thrown away without having run takes its lock object along.
_ours: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _each() -> Iterable[RunLock]:
    return tuple(_ours)


def _release_all() -> None:
    for lock in _each():
        lock.release()


def _forget_all() -> None:
    for lock in _each():
        lock.forget_in_child()


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):  # worker processes of a loader, which may outlive a run that is killed
    os.register_at_fork(after_in_child=_forget_all)
