"""Small files that are whole or absent: written under another name in the same folder, then put in place."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from velodrome.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["create_file", "refuse_existing", "replace_file"]


def refuse_existing(target: Path, *, force: bool) -> None:
    """Refuse to write over a file that is there, which somebody may need.

    Args:
        target: what is to be written.
        force: it may be written over, if it is a plain file.
    Raises:
        RefusedError: it exists, or is a link; or it is a device or a pipe, in whose place a file would be put.
    """
    if target.exists() and not target.is_file() and not target.is_dir():
        raise RefusedError(f"{target} is no plain file. Give another --out.", path=target)
    if os.path.lexists(target) and not force:
        raise RefusedError(f"{target} exists already. Give another --out, or --force to write over it.", path=target)


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Put `content` at `path` in one move, so that a reader sees the old file or the new one.

    Args:
        path: the file to make or replace.
        content: all of it.
        durable: also wait until the disk has it, for what must survive a power cut.
    Raises:
        OSError: the old file, if any, is untouched and nothing else is left behind.
    """
    temp = _write_temp(path, content, durable=durable)
    try:
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` durably, and only if nothing is there yet, even when two processes try at once.

    Raises:
        FileExistsError: something is there already.
    """
    temp = _write_temp(path, content, durable=True)
    try:
        try:
            os.link(temp, path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links (FAT, some network mounts): a check and a move are what is
            # left.
            if path.exists():
                raise FileExistsError(f"{path} exists") from None
            os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_temp(path: Path, content: bytes, *, durable: bool) -> Path:
    temp = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with open(temp, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    return temp


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder, and needs no such sync
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse to sync a folder; the file itself is synced
        pass
    finally:
        os.close(handle)
