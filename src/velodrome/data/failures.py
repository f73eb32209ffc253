"""What goes wrong while samples are fetched, said with the samples that it happened to; also across the border of a worker process."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import FetchError, VelodromeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Failure", "describe_error", "list_of", "remedy_for"]

_MAX_LISTED = 16


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process, as text; stands as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Failure:
    """An error of the dataset, or of what makes a batch of its samples, on its way to the training process.

    Fields:
        what: which step failed; a sentence without its end.
        indices: of the sample, or of all samples of the batch.
        summary: the error in one line, with the line of code that raised it.
        traceback: as text.
        worker: the worker process; None in the training process.
        error: the error itself, or what pickle made of it; None where it cannot be pickled.
        remedy: what to do.
    """

    what: str
    indices: list[Any]
    summary: str
    traceback: str
    worker: int | None
    error: BaseException | bytes | None
    remedy: str

    @classmethod
    def of(cls, error: Exception, what: str, indices: Sequence[Any], *, remedy: str) -> Failure:
        """Take up an error where it was caught.

        Raises:
            VelodromeError: the error, where it is one already that says what to do.
        """
        if isinstance(error, VelodromeError):
            raise error
        info = torch.utils.data.get_worker_info()
        text = "".join(traceback.format_exception(error))
        return cls(
            what=what,
            indices=list(indices),
            summary=describe_error(error),
            traceback=text,
            worker=None if info is None else info.id,
            error=error if info is None else _pickled(error),
            remedy=remedy_for(error) or remedy,
        )

    def raise_here(self) -> None:
        """Raise the error in the training process.

        Raises:
            FetchError: always; its cause is the original error.
        """
        where = "" if self.worker is None else f" in worker {self.worker}"
        message = f"{self.what} failed{where}: {self.summary}. {self.remedy}"
        facts: dict[str, Any] = {
            "index": self.indices[0] if len(self.indices) == 1 else None,
            "indices": self.indices,
            "worker": self.worker,
            "traceback": self.traceback,
        }
        raise FetchError(message, **facts) from self._cause()

    def _cause(self) -> BaseException:
        if isinstance(self.error, BaseException):
            return self.error
        from_there = WorkerTraceback(self.traceback)
        if self.error is not None:
            cause: BaseException = pickle.loads(
                self.error
            )  # from our own worker, by the pipe that batches come through
            cause.__cause__ = from_there
            return cause
        return from_there


def describe_error(error: BaseException) -> str:
    """Return the error in one line, and where it was raised: 'ValueError: planted (data.py, line 7, in read)'."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".rstrip(": .")
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    last = frames[-1]
    return f"{text} ({last.filename.replace(chr(92), '/').rpartition('/')[2]}, line {last.lineno}, in {last.name})"


def list_of(indices: Sequence[Any]) -> str:
    """Return the indices of a batch as people read them; of a long one the first.

    >>> list_of([3, 5, 7])
    'samples 3, 5 and 7'
    """
    shown = [str(index) for index in indices[:_MAX_LISTED]]
    if len(indices) == 1:
        return f"sample {shown[0]}"
    if len(indices) > _MAX_LISTED:
        return f"samples {', '.join(shown)} and {len(indices) - _MAX_LISTED} more"
    return f"samples {', '.join(shown[:-1])} and {shown[-1]}"


def remedy_for(error: BaseException) -> str:
    """Return what to do about errors whose text explains them to few people; nothing for others."""
    text = str(error)
    if "re-initialize CUDA in forked subprocess" in text:
        return (
            "CUDA does not work in worker processes that were forked. Keep the dataset on the CPU (batches are moved to the device "
            'anyway), or start the workers with multiprocessing_context="spawn".'
        )
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return (
            "Batches come from workers through open files, of which there are too many. Raise the limit with `ulimit -n 65536`, or "
            'call torch.multiprocessing.set_sharing_strategy("file_system") at the beginning.'
        )
    return ""


def _pickled(error: BaseException) -> bytes | None:
    """Return the error for the way to the training process; None where it would not arrive as it was."""
    try:
        data = pickle.dumps(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None
