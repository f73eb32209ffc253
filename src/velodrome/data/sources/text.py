"""A text as windows of characters, for models that predict each next one; and the bigram model that they must beat."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy
import torch
from torch import Tensor

from velodrome.data.sources.places import embedded_folder
from velodrome.data.sources.splits import Splits
from velodrome.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bigram_loss", "load_text"]

EMBEDDED_TEXT = "persuasion.txt.gz"
_VOCABULARIES = ("train", "text")


def load_text(
    path: str | Path | None = None,
    *,
    window: int = 128,
    stride: int | None = None,
    train_fraction: float = 0.9,
    vocabulary: Literal["train", "text"] = "train",
    say: Callable[[str], object] = print,
) -> Splits:
    """Return windows of a text: the ids of `window` characters, and those of the characters that follow each of them.

    The text is cut once, by position: its first part trains, the rest validates, and no window lies across the cut. The
    end of each part that does not fill a window is left out.

    Args:
        path: a UTF-8 text file; None is Jane Austen's Persuasion, which comes with the package.
        window: characters a sample.
        stride: characters from one training window's start to the next one's; `window` (each character once) when left
            out. Validation windows never overlap.
        train_fraction: the share of the characters, from the beginning, that trains.
        vocabulary: "train" numbers the characters of the training part, and refuses a validation part that has others;
            "text" numbers those of both parts.
        say: gets the line that says where the text came from.
    Returns:
        (ids, next ids), both int64 (windows, window); `class_names` holds the character of each id, sorted.
    Raises:
        ArgumentError: an argument is out of range.
        DataError: the file cannot be read, is no UTF-8 text, is too short, or holds characters that the training part lacks.
    Cost: 16 bytes for each character of a window: 16 x `window` / `stride` times the size of the text.
    """
    stride = window if stride is None else stride
    _check_arguments(window, stride, train_fraction, vocabulary)
    name, text = _read_embedded() if path is None else (str(path), _read_text(Path(path)))
    cut = int(len(text) * train_fraction)
    lengths = {"training": cut, "validation": len(text) - cut}
    for part, length in lengths.items():
        if length < window + 1:
            raise DataError(
                f"{name} holds {len(text):,} characters, of which the {part} part gets {length:,}. Each part needs at least "
                f"{window + 1:,}, a window of {window:,} and the character after it: use a longer text, or a smaller "
                f"window{' or train_fraction' if part == 'validation' else ''}."
            )
    points = numpy.frombuffer(text.encode("utf-32-le"), dtype=numpy.uint32)
    known = numpy.unique(points[:cut] if vocabulary == "train" else points)
    _check_known(points, known, cut, name)
    ids = torch.from_numpy(numpy.searchsorted(known, points).astype(numpy.int64))
    characters = tuple(map(chr, known))
    train, val = _cut_windows(ids[:cut], window, stride), _cut_windows(ids[cut:], window, window)
    origin = (
        f"{name}: {cut:,} + {len(text) - cut:,} characters, {len(characters)} different ones; "
        f"{len(train[0]):,} + {len(val[0]):,} windows of {window}"
    )
    say(origin)
    notes = {"kind": "text", "vocabulary": list(characters), "window": window}
    file = embedded_folder("text") / EMBEDDED_TEXT if path is None else Path(path)
    return Splits(train=train, val=val, origin=origin, class_names=characters, preprocessing=notes, files=(file,))


def bigram_loss(splits: Splits) -> float:
    """Return the loss that the best-known simple model of text has on the validation windows, in nats a character.

    A bigram model knows only the character before: p(b | a) = (count(a, b) + 1) / (count(a) + vocabulary). The counts are
    those of the training windows; one is added to each (Laplace's rule), so that no pair is impossible. What learns more
    than which letters follow which must come out lower.

    Source: D. Jurafsky and J. H. Martin, "Speech and Language Processing", chapter 3 (add-one smoothing).
    Cost: a table of vocabulary x vocabulary numbers.
    """
    size = len(splits.class_names)
    before, after = splits.train
    counts = torch.bincount((before * size + after).flatten(), minlength=size * size).view(size, size).double() + 1
    log_probabilities = (counts / counts.sum(dim=1, keepdim=True)).log()
    before, after = splits.val
    return -float(log_probabilities[before, after].mean())  # SYNC: on the CPU


def _check_arguments(window: int, stride: int, train_fraction: float, vocabulary: str) -> None:
    for name, value in {"window": window, "stride": stride}.items():
        if value <= 0:
            raise ArgumentError(f"{name}={value} must be a positive number of characters. Use {name}=128.")
    if stride > window:
        raise ArgumentError(
            f"stride={stride} is larger than window={window}, so {stride - window} characters after each window would never "
            f"be seen. It must be at most {window}: leave it out for windows side by side."
        )
    if not 0 < train_fraction < 1:
        raise ArgumentError(f"train_fraction={train_fraction} must lie between 0 and 1. Use 0.9.")
    if vocabulary not in _VOCABULARIES:
        raise ArgumentError(f"vocabulary={vocabulary!r} is unknown. {nearest(vocabulary, _VOCABULARIES)}")


def _read_embedded() -> tuple[str, str]:
    with gzip.open(embedded_folder("text") / EMBEDDED_TEXT) as file:
        return "Persuasion, by Jane Austen (embedded)", file.read().decode("utf-8")


def _read_text(path: Path) -> str:
    """Return a file's text, with line ends as "\\n" and without a byte order mark.

    Raises:
        DataError: it is not there, no regular file, empty, or not UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise DataError(f"{path} is {what}. Give the path of a UTF-8 text file.", path=path)
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Give the path of a UTF-8 text file, or none for the embedded text.", path=path
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
    if not raw:
        raise DataError(f"{path} is empty (0 bytes). Give a UTF-8 text file with something to learn.", path=path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start:,} of {len(raw):,} is 0x{raw[error.start]:02x}. Save it as UTF-8.",
            path=path,
        ) from None
    return text.replace("\r\n", "\n")


def _check_known(points: numpy.ndarray, known: numpy.ndarray, cut: int, name: str) -> None:
    """Refuse a validation part with characters that have no id."""
    unknown = numpy.flatnonzero(~numpy.isin(points[cut:], known))
    if not len(unknown):
        return
    kinds = numpy.unique(points[cut:][unknown])
    shown = ", ".join(repr(chr(point)) for point in kinds[:5]) + (", ..." if len(kinds) > 5 else "")
    raise DataError(
        f"{name}: {len(unknown):,} of the {len(points) - cut:,} validation characters are of {len(kinds)} kind"
        f"{'s' * (len(kinds) != 1)} that the training part lacks ({shown}; the first is character "
        f"{cut + int(unknown[0]):,}), and a model has no number for them. "
        'Remove them, or give them numbers that are never trained with vocabulary="text".',
        index=cut + int(unknown[0]),
    )


def _cut_windows(ids: Tensor, window: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return all whole windows and the same ones one character later; copies, so that nothing is shared between samples."""
    return ids[:-1].unfold(0, window, stride).contiguous(), ids[1:].unfold(0, window, stride).contiguous()
