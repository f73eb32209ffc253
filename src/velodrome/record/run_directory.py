"""The folder of one run: claimed before the first step, or refused with nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from velodrome.errors import ArgumentError, RefusedError, nearest
from velodrome.record.atomic import create_file, replace_file
from velodrome.record.reading import read_record, refuse_links
from velodrome.record.run_lock import RunLock, refuse_if_held
from velodrome.record.sink import make_plain, say_on_stderr
from velodrome.record.surroundings import describe_surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["END_STATUSES", "RunDirectory", "add_event"]

_OF_AN_END = ("stop_reason", "error", "progress", "best", "saved_step")
END_STATUSES = ("done", "failed", "stopped")


class RunDirectory:
    """Holds `run.json` (what this run is, and how it ended) and `log.txt`; other parts put files beside them.

    Made by `RunDirectory.create`. `path` is absolute, so that a later change of the working folder does no
    harm; inside the files every path is relative, so that the folder can be moved.
    """

    def __init__(self, path: Path, *, say: Callable[[str], None] = say_on_stderr) -> None:
        self.path = path
        self.id = secrets.token_hex(6)
        self._say = say
        self._record: dict[str, object] = {}
        self._has_warned_of_log = False
        self._lock = RunLock(path)
        self._seen: object = None  # which run.json was read or written last
        self.taken_over = ""
        """who left the lock of this folder behind, in words"""

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, say: Callable[[str], None] = say_on_stderr) -> RunDirectory:
        """Make the folder and prove that a file can be written in it, by writing one.

        Args:
            path: the folder; parents are made too, and an existing folder without a run is taken as it is.
            say: shows a line to people when the disk fails later.
        Raises:
            ArgumentError: the folder cannot be made or written to; folders made on the way are removed again.
            RefusedError: it holds a run already.
        """
        made: list[Path] = []
        try:
            if not os.fspath(path):
                raise ValueError("the name is empty")
            folder = Path(path).expanduser().absolute()
            if os.path.lexists(folder / "run.json"):
                raise _already_holds_a_run(path)
            _make_folders(folder, made)
            _probe(folder)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # ValueError: a NUL in the name; RuntimeError: no home
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # somebody else has put a file there meanwhile
                    folder.rmdir()
            raise _cannot_write(path, error) from error
        return cls(folder, say=say)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, say: Callable[[str], None] = say_on_stderr) -> RunDirectory:
        """Take a folder that holds a run, to go on with it.

        Raises:
            RefusedError: the run is under way, its `run.json` cannot be read, or one of its files is a link.
            ArgumentError: the folder cannot be written to.
        """
        folder = Path(path).expanduser().absolute()
        refuse_if_held(folder)
        refuse_links(folder)
        record = read_record(folder)
        try:
            _probe(folder)
        except OSError as error:
            raise _cannot_write(path, error) from error
        directory = cls(folder, say=say)
        directory.id, directory._record = record["id"], record
        directory._seen = _identify(folder / "run.json")
        return directory

    @property
    def record(self) -> Mapping[str, object]:
        """What `run.json` says."""
        return self._record

    def start(self, facts: Mapping[str, object] | None = None) -> None:
        """Take the lock, and write `run.json` with status "running", the facts given and the surroundings.

        Raises:
            RefusedError: another run took the folder first.
            ArgumentError: the file cannot be written.
        """
        self._take_lock()
        own: dict[str, object] = {"id": self.id, "status": "running", "started": _now(), "finished": None}
        own.update(describe_surroundings())
        self._record = {**own, **_as_dict(facts), **own}  # own facts first in the file, and they win
        try:
            create_file(self.path / "run.json", self._encode())
        except FileExistsError:
            self.release()
            raise _already_holds_a_run(self.path) from None
        except OSError as error:
            self.release()
            raise _cannot_write(self.path, error) from error
        self._seen = _identify(self.path / "run.json")

    def reopen(self, facts: Mapping[str, object] | None = None) -> None:
        """Take the lock, and say in `run.json` that the run, ended once, goes on; a folder that is gone by now is made again.

        How it had ended, and how far it had come, is not true any more: until it ends again the journal tells.

        Raises:
            RefusedError: another process writes into the folder, or has done so since it was opened.
            ArgumentError: the file cannot be written.
        """
        own: dict[str, object] = {"status": "running", "finished": None}
        first = self._record or {
            "id": self.id,
            "status": "",
            "started": _now(),
            "finished": None,
            **describe_surroundings(),
        }
        kept = {name: value for name, value in first.items() if name not in _OF_AN_END}
        self._record = {**kept, **_as_dict(facts), **own, "id": self.id}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._refuse_changed()
            replace_file(self.path / "run.json", self._encode())
        except OSError as error:
            self.release()
            raise _cannot_write(self.path, error) from error
        self._seen = _identify(self.path / "run.json")

    def release(self) -> None:
        """Let others write into the folder; a second call does nothing."""
        self._lock.release()

    def finish(self, status: str, facts: Mapping[str, object] | None = None) -> None:
        """Put the end of the run into `run.json`: "done", "failed" or "stopped"; others may write into the folder then.

        A disk that fails now is told in a line, not raised: the result in memory is worth more than the file.

        Raises:
            ArgumentError: the status is unknown.
        """
        if status not in END_STATUSES:
            raise ArgumentError(
                f'"{status}" is not a status that a run can end with. {nearest(str(status), END_STATUSES)}',
                status=status,
            )
        own: dict[str, object] = {"status": status, "finished": _now()}
        self._record = {**self._record, **_as_dict(facts), "id": self.id, **own}
        try:
            replace_file(self.path / "run.json", self._encode(), durable=True)
        except OSError as error:
            reason = error.strerror or error
            self._say(f"warning: Cannot write {self.path / 'run.json'}: {reason}. The run is {status}.")
        self._seen = _identify(self.path / "run.json")
        self.release()

    def log(self, line: str) -> None:
        """Append a line to `log.txt`; a disk that fails is told once."""
        text = f"{_now()} {line}\n"
        try:
            with open(self.path / "log.txt", "ab") as file:
                file.write(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._has_warned_of_log:
                self._has_warned_of_log = True
                reason = error.strerror or error
                self._say(f"warning: Cannot write {self.path / 'log.txt'}: {reason}. Training goes on.")

    def add_event(self, event: Mapping[str, object]) -> None:
        """Append an event to `events.jsonl`, with the time; what a disk that fails makes of it is left out."""
        add_event(self.path, event)

    def _take_lock(self) -> None:
        try:
            before = self._lock.acquire()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.taken_over = "" if before is None else str(before)

    def _refuse_changed(self) -> None:
        """Refuse a run that somebody else went on with, and ended, between our look at it and our lock."""
        now = _identify(self.path / "run.json")
        if now is None or now == self._seen:
            return
        self.release()
        raise RefusedError(
            f"The run in {str(self.path)!r} was written to by another process since this trainer was made. What this trainer would go on "
            f"from is old by now; nothing was changed. Start again: it then goes on from the newest checkpoint.",
            path=str(self.path),
        )

    def _encode(self) -> bytes:
        text = json.dumps(self._record, ensure_ascii=False, allow_nan=False, indent=2)
        return text.encode("utf-8") + b"\n"


def add_event(folder: Path, event: Mapping[str, object]) -> None:
    """Append an event to the `events.jsonl` of a run that this process writes to."""
    line = json.dumps(make_plain({"time": _now(), **event}), allow_nan=False)
    with contextlib.suppress(OSError), open(folder / "events.jsonl", "ab") as file:
        file.write(line.encode() + b"\n")


def _make_folders(folder: Path, made: list[Path]) -> None:
    missing: list[Path] = []
    for candidate in (folder, *folder.parents):
        if os.path.lexists(candidate):
            break
        missing.append(candidate)
    for candidate in reversed(missing):
        try:
            candidate.mkdir()
        except FileExistsError:  # another process was faster; whatever stands there is judged by the probe
            continue
        made.append(candidate)


def _probe(folder: Path) -> None:
    probe = folder / f".tmp-{secrets.token_hex(4)}-probe"
    try:
        with open(probe, "xb") as file:
            file.write(b"velodrome\n")
    finally:
        if os.path.lexists(probe):
            probe.unlink()


def _identify(file: Path) -> object:
    """Return what changes whenever a file is replaced; None when there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _as_dict(facts: Mapping[str, object] | None) -> dict[str, object]:
    return make_plain(dict(facts or {}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cannot_write(path: str | os.PathLike[str], error: Exception) -> ArgumentError:
    reason = getattr(error, "strerror", None) or str(error)
    return ArgumentError(
        f"run_dir={os.fspath(path)!r} cannot be written to: {reason}. A run directory must be a folder, new "
        "or without a run, in which files can be made. Give another run_dir, or None to keep no records.",
        path=os.fspath(path),
    )


def _already_holds_a_run(path: str | os.PathLike[str]) -> RefusedError:
    return RefusedError(
        f"run_dir={os.fspath(path)!r} holds a run already (run.json is there). One folder takes one run, so "
        "that no records are overwritten; nothing was changed. Give another run_dir, or move that one away.",
        path=os.fspath(path),
    )
