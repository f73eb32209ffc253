"""The file that an answer goes into: looked at before the work begins, and never put in the place of anything but a file."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from velodrome.errors import ArgumentError, RefusedError
from velodrome.record.atomic import replace_file

__all__ = ["check_place", "find_target", "write_answer"]

_PROBE_BYTES = 4096  # a disk that is full takes an empty file

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def find_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that `path` stands for: itself, or where a symbolic link leads.

    Raises:
        RefusedError: something is there that is no file (a named pipe, a device), or nobody may look.
    """
    given = Path(path)
    try:
        mode = os.stat(given).st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(given)) if given.is_symlink() else given
    except OSError as error:
        raise RefusedError(f"{given} cannot be written: {error.strerror}. Give another file.", path=given) from error
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise RefusedError(
            f"{given} is {kind}, which a file would take the place of. Give the name of a file.", path=given
        )
    return Path(os.path.realpath(given)) if given.is_symlink() else given


def check_place(path: str | os.PathLike[str]) -> None:
    """See to it that a file can be written there; nothing is left behind.

    Raises:
        ArgumentError: its folder is not there.
        RefusedError: something is there that is no file, or the folder takes no file: it is read-only, or its disk is full.
    """
    target = find_target(path)
    if not target.parent.is_dir():
        raise ArgumentError(f"{path} lies in {target.parent}, which is no folder. Make it first, or choose another.")
    try:
        with tempfile.TemporaryFile(dir=target.parent) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be written: {error.strerror}. Nothing was tried; give another file.", path=Path(path)
        ) from error


def write_answer(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all; where a symbolic link stands, the file that it leads to.

    Raises:
        RefusedError: something is there that is no file.
        OSError: it cannot be written; what was there is untouched.
    """
    replace_file(find_target(path), content)
