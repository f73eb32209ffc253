"""Every operation that changes the disk goes through `Files`, so that tests can make each single one fail.

The methods are as small as the system calls below them: a fault, a kill or a power cut can fall between any
two. Reading is not here; what is read is checked by hash instead.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Files", "make_folder", "remove_tree", "write_atomically", "write_new"]

# Some network file systems cannot flush a folder and say so with these; the files themselves were flushed.
_FOLDER_FLUSH_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


class Files:
    """The real disk. A test subclasses it to fail, to stop, or to record."""

    def open_new(self, path: Path) -> int:
        """Create the file, which must not exist, and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the data and return how many bytes: like the system call, it may stop early."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Wait until the file's bytes are on the disk itself."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close the descriptor."""
        os.close(descriptor)

    def fsync_dir(self, path: Path) -> None:
        """Wait until what was created, renamed or removed in the folder is on the disk itself."""
        if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _FOLDER_FLUSH_UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Create one folder, which must not exist."""
        path.mkdir()

    def replace(self, source: Path, target: Path) -> None:
        """Rename in one indivisible step; a target that is a file is replaced."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


def make_folder(files: Files, path: Path) -> None:
    """Create a folder and its missing parents, each one flushed into its own parent."""
    if path.is_dir():
        return
    make_folder(files, path.parent)
    files.mkdir(path)
    files.fsync_dir(path.parent)


def remove_tree(files: Files, path: Path) -> None:
    """Remove a file or a folder with all that is in it; links are removed, never followed."""
    if path.is_symlink() or not path.is_dir():
        files.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        remove_tree(files, entry)
    files.rmdir(path)


def write_new(files: Files, path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write a file that did not exist, piece by piece; with `durable`, return only when its bytes are on the disk."""
    try:
        descriptor = files.open_new(path)
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    num_written = files.write(descriptor, rest)
                    if num_written == 0:  # a disk that takes nothing and reports nothing would be asked for ever
                        raise OSError(errno.EIO, "the disk accepted no byte")
                    rest = rest[num_written:]
            if durable:
                # On the descriptor that wrote: after a close the kernel may have dropped a failed page
                # already.
                files.fsync(descriptor)
        finally:
            files.close(descriptor)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def write_atomically(
    path: Path, data: bytes, *, files: Files | None = None, durable: bool = True, tag: str = "x"
) -> None:
    """Replace a file so that a reader, or a crash, sees the old bytes or the new ones and nothing between.

    Args:
        path: the file; its folder must exist.
        data: the new content.
        files: where the operations go; the real disk when left out.
        durable: flush the file before the rename and the folder after it. Not needed for a mere hint.
        tag: goes into the temporary file's name, so that its owner can find it after a crash.
    """
    files = files or Files()
    temporary = path.with_name(f".tmp-{path.name}-{tag}-{secrets.token_hex(4)}")
    try:
        write_new(files, temporary, [data], durable=durable)
        files.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            files.unlink(temporary)
        raise
    if durable:
        files.fsync_dir(path.parent)
