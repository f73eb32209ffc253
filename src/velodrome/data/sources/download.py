"""Downloads that are checked by hash before anybody sees them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
import urllib.error
import urllib.request
from http.client import HTTPException, IncompleteRead
from typing import TYPE_CHECKING

from velodrome.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["check_sha256", "download"]

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 10.0  # of one connection or one read, so that a machine without a network goes on soon
_MAX_BYTES = 1 << 30
_MAX_SECONDS = 1800.0  # the largest file, 26 MB, at 15 kB/s


def download(
    urls: Sequence[str],
    target: Path,
    *,
    check: Callable[[Path], None],
    timeout_s: float = _TIMEOUT_S,
    max_bytes: int = _MAX_BYTES,
    max_seconds: float = _MAX_SECONDS,
) -> None:
    """Bring a file to its place, from the first address that gives the right one.

    It is written beside the target under another name and renamed when its check passes: the target is whole or absent.
    A folder that had to be made goes away again when nothing came.

    Args:
        urls: mirrors, tried in order.
        target: where the file shall lie.
        check: raises DataError when the file is not the right one; see `check_sha256`.
        timeout_s: for a connection or a single read.
        max_bytes: an address that sends more is given up.
        max_seconds: an address that takes longer is given up, however steadily it sends.
    Raises:
        DataError: no address gave the file; says what each one answered.
    """
    failures = []
    missing_folders = [folder for folder in target.parents if not os.path.isdir(folder)]
    for url in urls:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            _fetch(url, partial, timeout_s, max_bytes, max_seconds)
            check(partial)
            partial.replace(target)
            return
        except DataError as error:
            failures.append(f"{url}: {str(error).replace(partial.name, target.name)} It was thrown away")
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{url}: {_describe(error)}")
        finally:
            # A folder that may not be entered raises here too; the reason has been noted above.
            with contextlib.suppress(OSError):
                partial.unlink()
    for folder in missing_folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
    raise DataError(f"{target.name} could not be downloaded. Tried " + "; ".join(failures) + ".", path=target)


def check_sha256(path: Path, sha256: str) -> None:
    """Refuse a file with another SHA-256 than published.

    Raises:
        DataError: shows both.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{path.name} has SHA-256 {found}, published is {sha256}.", path=path)


def _fetch(url: str, partial: Path, timeout_s: float, max_bytes: int, max_seconds: float) -> None:
    """Write what the address gives into the file."""
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "velodrome"})
    end = time.monotonic() + max_seconds
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        promised = response.headers.get("Content-Length")
        total = int(promised) if promised and promised.isdecimal() else None
        if total is not None and total > max_bytes:
            raise ValueError(f"it sends {total:,} bytes, more than {max_bytes:,}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=total, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, leave=False, disable=None)
        with bar, open(partial, "wb") as file:
            done = 0
            # read1 comes back with what is there: read would wait for the whole piece, at any speed.
            while chunk := response.read1(_CHUNK_BYTES):
                done += len(chunk)
                if done > max_bytes:
                    raise ValueError(f"it sends more than {max_bytes:,} bytes")
                if time.monotonic() > end:
                    raise ValueError(f"it took more than {max_seconds:g} s for {done:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and done != total:
            raise ValueError(f"it broke off after {done:,} of {total:,} bytes")


def _describe(error: OSError | HTTPException | ValueError) -> str:
    """Return what went wrong in one line, without the name of the file that only lay there for a moment."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        text = str(error)
    elif isinstance(error, urllib.error.URLError):
        text = str(error.reason)
    elif isinstance(error, IncompleteRead):
        text = "it broke off"
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    else:
        text = str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
