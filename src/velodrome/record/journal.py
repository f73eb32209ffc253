"""The journal: every row that a run reports, one line of strict JSON each, in the order of training.

`metrics.jsonl` is the source of truth; whatever else shows the numbers is fed from here and can be made again
from it. No fault of the disk or of a sink stops training: rows stay in memory, and lines that a full disk
refused are written by the next row that finds room.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from velodrome.errors import CheckpointError
from velodrome.record.reading import MAX_JOURNAL_BYTES, MAX_LINE_BYTES, parse_strict, read_limited
from velodrome.record.sink import make_plain, say_on_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from velodrome.record.sink import Sink

__all__ = ["CUT_NAME", "MAX_NAMES", "Journal", "read_rows"]

CUT_NAME = "metrics.cut.jsonl"
"""Rows of steps that a resumed run made again."""

MAX_NAMES = 1000
"""How many different names of values a run may report; the rest is dropped, with one warning."""

_TAIL_BYTES = 1 << 20


class Journal:
    """Writes rows to `metrics.jsonl` first, then to every sink.

    Args:
        path: the file to append to; None keeps the rows in memory only.
        sinks: each gets every row; one that raises is switched off with one line.
        say: shows a line to people.

    Cost: one system call a row. Not synced to the disk: a power cut may take the last seconds of the journal,
        and a checkpoint knows how long the journal was.
    """

    def __init__(
        self, path: Path | None, sinks: Sequence[Sink] = (), *, say: Callable[[str], None] = say_on_stderr
    ) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        self._sinks = list(sinks)
        self._say = say
        self._names: set[str] = set()
        self._file: BinaryIO | None = None
        self._end: int | None = None  # where the next line belongs; None: the file was not looked at yet
        self._pending: list[bytes] = []  # lines that the file does not hold yet, oldest first
        self._has_warned_of_names = False
        self._has_warned_of_disk = False

    def write(self, row: Mapping[str, object]) -> None:
        """Record one row: on disk, in `rows`, then in every sink."""
        plain = self._keep_known_names(row)
        self.rows.append(plain)
        if self.path is not None:
            line = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
            self._pending.append(line.encode("utf-8") + b"\n")
            self._write_pending(self.path)
        for sink in tuple(self._sinks):
            try:
                sink.write(dict(plain))
            except Exception as error:
                self._disable(sink, error)

    def sync(self, *, durable: bool = True) -> int | None:
        """Bring all rows to the disk itself and return the file's length: a checkpoint says how long the journal was.

        Args:
            durable: wait for the disk; without it, somebody else does before the length is relied on.
        Returns:
            None when the rows are in memory only, or the disk failed.
        """
        if self.path is None:
            return None
        if self._file is None or self._pending:
            self._write_pending(self.path)
        if self._file is None or self._pending:
            return None
        if durable:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
        return self._end

    def go_back(self, num_bytes: int | None, *, step: int) -> list[dict[str, Any]]:
        """Cut the file back to its length at a checkpoint, and return the rows that stay; sinks are told.

        What is cut off is kept in a file beside it: it was reported, and is reported again.

        Args:
            num_bytes: what `sync` returned; None keeps all.
            step: of the checkpoint.
        Raises:
            CheckpointError: the file is no journal.
        """
        if self.path is None:
            return []
        try:
            if self._file is None:
                self._file = self._open(self.path)
            size = self._file.seek(0, os.SEEK_END)
            if size > MAX_JOURNAL_BYTES:
                raise _too_large(self.path, size)
            self._file.seek(0)
            whole = self._file.read()
            num_bytes = len(whole) if num_bytes is None else num_bytes
            kept, cut = whole[:num_bytes], whole[num_bytes:]
            kept = kept[: kept.rfind(b"\n") + 1]
            if cut:
                with open(self.path.with_name(CUT_NAME), "ab") as aside:
                    aside.write(cut)
            self._file.truncate(len(kept))
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be cut back to the checkpoint of step {step}: {error.strerror}. Make it writable.",
                path=self.path,
            ) from error
        self._end = len(kept)
        if len(kept) < num_bytes:
            self._warn(
                f"{self.path} is shorter than it was at the checkpoint of step {step}; rows before it are missing."
            )
        try:
            rows = _parse(kept, self.path)
        except CheckpointError:
            self._close_file()
            raise
        self.rows = [dict(row) for row in rows]
        self._names.update(name for row in rows for name in row)
        for sink in tuple(self._sinks):
            go_on = getattr(sink, "go_on", None)
            if go_on is not None:
                go_on([dict(row) for row in rows], step)
        return rows

    def close(self) -> None:
        """Write what is still missing, close the file and every sink; a second call does nothing."""
        if self.path is not None and self._pending:
            self._write_pending(self.path)
            if self._pending:
                self._warn(f"{len(self._pending)} rows never reached {self.path}; they are lost with this process.")
                self._pending.clear()
        self._close_file()
        for sink in tuple(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._disable(sink, error)
        self._sinks.clear()

    def _keep_known_names(self, row: Mapping[str, object]) -> dict[str, object]:
        kept: dict[str, object] = {}
        num_dropped = 0
        for key, value in row.items():
            name = make_plain(str(key))
            if name not in self._names:
                if len(self._names) >= MAX_NAMES:
                    num_dropped += 1
                    continue
                self._names.add(name)
            kept[name] = make_plain(value)
        if num_dropped and not self._has_warned_of_names:
            self._has_warned_of_names = True
            self._warn(
                f"This run reports more than {MAX_NAMES} different names; {num_dropped} new ones of this row "
                "are not recorded, nor any other new one. Report fewer, such as one mean for all layers."
            )
        return kept

    def _write_pending(self, path: Path) -> None:
        """Write the missing lines at the known end of the file.

        Each goes to the place where the last whole line ended, so what a full disk cut short is overwritten
        by the same bytes later, and nothing has to be removed first (a file on a full disk may refuse even
        that).
        """
        try:
            if self._file is None:
                self._file = self._open(path)
            assert self._end is not None
            while self._pending:
                line = self._pending[0]
                self._file.seek(self._end)
                num_written = 0
                while num_written < len(line):
                    num_written += self._file.write(memoryview(line)[num_written:])
                self._end += len(line)
                self._pending.pop(0)
        except OSError as error:
            # Closed, so that the next try opens it afresh: a file handle of a vanished network mount never
            # recovers.
            self._close_file()
            if not self._has_warned_of_disk:
                self._has_warned_of_disk = True
                self._warn(
                    f"Cannot write {path}: {error.strerror or error}. Training goes on, the rows are kept "
                    "in memory, and every later row tries again: free some space."
                )

    def _open(self, path: Path) -> BinaryIO:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        try:
            if self._end is None:
                self._end = _find_end(file)
        except BaseException:
            file.close()
            raise
        return file

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a network disk may report late, for lines that it took before
                self._file.close()
            self._file = None

    def _disable(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        self._warn(
            f"{type(sink).__name__} raised {type(error).__name__}: {error}. It is off for the rest of this "
            "run; training goes on, and every row is still recorded by the journal."
        )
        try:
            sink.close()
        except Exception:  # it is off already, and its first error was shown
            return

    def _warn(self, line: str) -> None:
        try:
            self._say(f"warning: {line}")
        except Exception:  # the view that shows lines is no more vital than a sink
            say_on_stderr(f"warning: {line}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal that nobody writes to.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        data = read_limited(path, MAX_JOURNAL_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}. Restore it, or give another run_dir.") from error
    return _parse(data[: data.rfind(b"\n") + 1], path)


def _parse(data: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        lines = data.splitlines()
        if max(map(len, lines), default=0) > MAX_LINE_BYTES:
            raise ValueError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
        rows = [parse_strict(line) for line in lines]
        if not all(isinstance(row, dict) and "kind" in row for row in rows):
            raise ValueError("a line is no row")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Restore it, or give another run_dir.", path=path) from error
    return rows


def _too_large(path: Path, size: int) -> CheckpointError:
    return CheckpointError(
        f"{path} has {size:,} bytes, and at most {MAX_JOURNAL_BYTES:,} are read. Nothing was changed. Move it away to go on without "
        f"the rows so far, and report less often (log_every).",
        path=path,
    )


def _find_end(file: BinaryIO) -> int:
    """Return where the next line belongs in a file that may end in a torn line, and cut that line off."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    end = start + tail.rfind(b"\n") + 1
    if end < size:
        file.truncate(end)
    return end
