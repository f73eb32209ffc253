"""Which checkpoints a folder holds, newest first, and what is wrong with those that cannot be used.

`latest.json` is a hint for people and other tools; nothing here reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from velodrome.checkpoint.manifest import FileRecord, Manifest, parse_json, read_limited, read_manifest
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["Best", "Found", "check_file", "check_files", "find_checkpoints", "read_best"]

BEST_NAME = "best.json"
MAX_BEST_BYTES = 1 << 16

# A checkpoint that is being replaced by a newer one of the same step waits under the second form of the name.
_FOLDER_NAME = re.compile(r"step-(\d{8,18})|\.old-step-(\d{8,18})-[0-9a-f-]+")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder named like a checkpoint.

    Args:
        path: the folder.
        step: by its name.
        manifest: None when it has none that can be read.
        problem: why it cannot be used, or "".
        set_aside: a newer one of the same step was about to replace it.
    """

    path: Path
    step: int
    manifest: Manifest | None
    problem: str
    set_aside: bool


@dataclass(frozen=True, kw_only=True)
class Best:
    """The content of `best.json`."""

    step: int
    monitor: str
    value: float

    def to_bytes(self) -> bytes:
        """Return the JSON text that `read_best` reads back."""
        return (json.dumps({"step": self.step, "monitor": self.monitor, "value": self.value}) + "\n").encode()


def find_checkpoints(directory: Path, *, leave_out: Collection[Path] = ()) -> list[Found]:
    """Return what is named like a checkpoint, newest first, with manifests and sizes checked but not hashes.

    Args:
        directory: that holds them.
        leave_out: folders in it that are not looked into.
    Cost: one small read and a few status calls per checkpoint; the hashes are `check_files`.
    """
    found = []
    try:
        entries = list(directory.iterdir()) if directory.exists() else []
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be listed: {error.strerror}. Check that it is a folder that you may read.",
            path=directory,
            errno=error.errno,
        ) from error
    for path in entries:
        if path not in leave_out and (match := _FOLDER_NAME.fullmatch(path.name)):
            found.append(_inspect(path, int(match[1] or match[2]), set_aside=match[1] is None))
    return sorted(found, key=lambda one: (one.step, not one.set_aside, one.path.name), reverse=True)


def check_files(folder: Path, manifest: Manifest, *, hashes: bool) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: the first file that differs.
    """
    for name, record in manifest.files.items():
        check_file(folder / name, record, hashes=hashes)


def check_file(path: Path, record: FileRecord, *, hashes: bool) -> None:
    """Compare one file with its record: its size, and with `hashes` its content.

    Raises:
        CheckpointError: it is missing, unreadable, or not what was written.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != record.num_bytes:
            raise CheckpointError(
                f"{path} has {status.st_size} bytes. Its manifest says a file of {record.num_bytes}: it is "
                f"torn. "
                f"Use another checkpoint.",
                path=path,
            )
        if not hashes:
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Use another checkpoint.", path=path, errno=error.errno
        ) from error
    if digest != record.sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 begins with {digest[:12]}. Its manifest says "
            f"{record.sha256[:12]}. "
            f"Use another checkpoint.",
            path=path,
        )


def read_best(directory: Path) -> Best | None:
    """Read `best.json` of a folder of checkpoints; None when nothing was ever marked.

    Raises:
        CheckpointError: it is damaged.
    """
    path = directory / BEST_NAME
    if not path.exists():
        return None
    document = parse_json(read_limited(path, MAX_BEST_BYTES), origin=str(path), limit=MAX_BEST_BYTES, allow_nan=True)
    match document:
        case {"step": int(step), "monitor": str(monitor), "value": float() | int() as value} if (
            len(cast("dict[str, object]", document)) == 3
            and not isinstance(step, bool)
            and step >= 0
            and not math.isnan(value)
        ):
            return Best(step=step, monitor=monitor, value=float(value))
        case _:
            raise CheckpointError(
                f"{path} is damaged: it must hold a step, a monitor and a value, and nothing else. "
                f'Ask for the last weights instead (weights="last").',
                path=path,
            )


def _inspect(path: Path, step: int, *, set_aside: bool) -> Found:
    manifest, problem = None, ""
    try:
        manifest = read_manifest(path)
        if manifest.step == step:
            check_files(path, manifest, hashes=False)
        else:
            problem = f"{path} is named for step {step} and holds step {manifest.step}."
    except CheckpointError as error:
        problem = error.message
    return Found(path=path, step=step, manifest=manifest, problem=problem, set_aside=set_aside)
