"""What a checkpoint folder holds, with sizes and hashes: `manifest.json`, written last and believed first.

A folder without a readable manifest is not a checkpoint. Parsing is strict: nothing that is unknown, doubled,
out of range or pointing outside the folder gets through, and the size is limited before a byte is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "MANIFEST_NAME",
    "Describer",
    "FileRecord",
    "Manifest",
    "describe",
    "parse_json",
    "read_limited",
    "read_manifest",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20  # one rank's files take 150 bytes each: room for thousands of ranks

MAX_DEPTH = 100  # what is written is nested at most 50 deep
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and hash of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of one checkpoint.

    Args:
        run_id: the run that wrote it; only that run ever prunes it.
        step: updates done when it was written.
        files: every file of the folder but the manifest itself, by name.
    """

    run_id: str
    step: int
    files: Mapping[str, FileRecord]

    def to_bytes(self) -> bytes:
        """Return the JSON text that `parse` reads back."""
        document = {
            "format": FORMAT_VERSION,
            "run_id": self.run_id,
            "step": self.step,
            "files": {
                name: {"bytes": record.num_bytes, "sha256": record.sha256} for name, record in self.files.items()
            },
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, *, origin: str = MANIFEST_NAME) -> Manifest:
        """Read a manifest, or say what is wrong with it.

        Raises:
            CheckpointError: not a manifest of a version that this release knows.
        """
        document = _expect_object(parse_json(data, origin=origin, limit=MAX_MANIFEST_BYTES), "it", origin)
        version = document.get("format")
        if type(version) is not int or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{origin} has format {version!r}. This release reads format {FORMAT_VERSION}. "
                f"If a newer release wrote it, read it with that one.",
                format=version,
            )
        _expect_keys(document, {"format", "run_id", "step", "files"}, "the manifest", origin)
        run_id, step = document["run_id"], document["step"]
        if not isinstance(run_id, str) or not 0 < len(run_id) <= 200:
            raise _damaged(origin, f"run_id is {_short(run_id)}, not a text of 1 to 200 characters")
        if not _is_count(step):
            raise _damaged(origin, f"step is {_short(step)}, not a whole number from 0 up")
        files = _expect_object(document["files"], "files", origin)
        return cls(run_id=run_id, step=step, files={name: _parse_file(name, files[name], origin) for name in files})


class Describer:
    """Looks on as a file's content goes by, and knows its size and hash afterwards.

    >>> describer = Describer()
    >>> b"".join(describer.watch([b"ab", b"c"])), describer.record.num_bytes
    (b'abc', 3)
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def watch(self, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Yield the pieces as they are. Large ones are hashed without holding Python's global lock."""
        for chunk in chunks:
            self._digest.update(chunk)
            self._num_bytes += len(chunk)
            yield chunk

    @property
    def record(self) -> FileRecord:
        """Size and hash of what went by so far."""
        return FileRecord(num_bytes=self._num_bytes, sha256=self._digest.hexdigest())


def describe(data: bytes) -> FileRecord:
    """Return the size and hash of a file's content."""
    return FileRecord(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / MANIFEST_NAME
    return Manifest.parse(read_limited(path, MAX_MANIFEST_BYTES), origin=str(path))


def read_limited(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        CheckpointError: missing, not a file, too large, or unreadable.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise CheckpointError(f"{path} is not a regular file. Restore it from a copy.", path=path)
        if status.st_size > limit:
            raise CheckpointError(
                f"{path} has {status.st_size} bytes. At most {limit} are read from such a file. "
                f"It is damaged or not what its name says.",
                path=path,
            )
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Use another checkpoint.", path=path, errno=error.errno
        ) from error


def parse_json(data: bytes, *, origin: str, limit: int, allow_nan: bool = False) -> object:
    """Parse JSON of limited size, refusing doubled keys and, unless allowed, NaN and infinities.

    Raises:
        CheckpointError: too large, too deep, or not JSON.
    """
    if len(data) > limit:
        raise _damaged(origin, f"it has {len(data)} bytes and at most {limit} are allowed")
    if _is_too_deep(data):  # before the parser and all that walks through its result recurse into it
        raise _damaged(origin, f"it is nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=None if allow_nan else _refuse_constant,
        )
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise _damaged(origin, str(error)) from error


def _is_too_deep(data: bytes) -> bool:
    depth = 0
    for found in _BRACKETS.finditer(data):
        if found[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif found[0] in b"]}":
            depth -= 1
    return False


def _parse_file(name: str, value: object, origin: str) -> FileRecord:
    if not _FILE_NAME.fullmatch(name):
        raise _damaged(origin, f"file name {_short(name)} is not a plain name inside the folder")
    record = _expect_object(value, f"files[{name!r}]", origin)
    _expect_keys(record, {"bytes", "sha256"}, f"files[{name!r}]", origin)
    num_bytes, sha256 = record["bytes"], record["sha256"]
    if not _is_count(num_bytes):
        raise _damaged(origin, f"bytes of {name} is {_short(num_bytes)}, not a whole number from 0 up")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _damaged(origin, f"sha256 of {name} is {_short(sha256)}, not 64 hexadecimal digits")
    return FileRecord(num_bytes=num_bytes, sha256=sha256)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _expect_object(value: object, what: str, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(origin, f"{what} is {_short(value)}, not an object")
    return cast("dict[str, Any]", value)


def _expect_keys(document: dict[str, Any], expected: set[str], what: str, origin: str) -> None:
    if document.keys() != expected:
        missing, unknown = sorted(expected - document.keys()), sorted(document.keys() - expected)
        raise _damaged(origin, f"{what} lacks {_short(missing)} and has unknown {_short(unknown)}")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _damaged(origin: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{origin} is damaged: {problem}. Use another checkpoint.", path=origin)
