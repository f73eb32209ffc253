"""A text stream that never fails: a terminal that is gone, or lacks a letter, must not stop training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["SafeStream"]


class SafeStream:
    """Writes to a stream until it fails once, then is silent; a character that it cannot encode becomes `?`.

    It offers what tqdm reads of a file (`encoding`, `isatty`, `fileno`), so a bar can be drawn on it.

    Args:
        stream: usually `sys.stderr`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_silent = False

    @property
    def encoding(self) -> str:
        """The encoding of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write the text, or as much of it as the stream can spell."""
        if self.is_silent:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError):  # a closed file raises ValueError
            self.is_silent = True
        return len(text)

    def flush(self) -> None:
        """Flush the stream below."""
        if self.is_silent:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.is_silent = True

    def write_line(self, line: str) -> None:
        """Write a line at once."""
        self.write(line + "\n")
        self.flush()

    def isatty(self) -> bool:
        """Tell whether a person's terminal is behind the stream."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def measure_size(self) -> tuple[int, int]:
        """Return columns and rows of the terminal; 0 for what it does not say."""
        try:
            return os.get_terminal_size(self.fileno())
        except (OSError, ValueError, AttributeError):
            return (0, 0)

    def fileno(self) -> int:
        """Return the handle of the stream below, for tqdm to ask how wide the terminal is."""
        return self._stream.fileno()
