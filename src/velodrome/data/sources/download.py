"""Downloads that are checked by hash before anybody sees them."""

from __future__ import annotations

import hashlib
import secrets
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from velodrome.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["check_sha256", "download"]

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 10.0  # of one connection or one read, so that a machine without a network goes on soon
_MAX_BYTES = 1 << 30


def download(
    urls: Sequence[str], target: Path, *, check: Callable[[Path], None], timeout_s: float = _TIMEOUT_S
) -> None:
    """Bring a file to its place, from the first address that gives the right one.

    It is written beside the target under another name and renamed when its check passes: the target is whole or absent.

    Args:
        urls: mirrors, tried in order.
        target: where the file shall lie.
        check: raises DataError when the file is not the right one; see `check_sha256`.
        timeout_s: for a connection or a single read.
    Raises:
        DataError: no address gave the file; says what each one answered.
    """
    failures = []
    for url in urls:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            _fetch(url, partial, timeout_s)
            check(partial)
            partial.replace(target)
            return
        except DataError as error:
            failures.append(f"{url}: {str(error).replace(partial.name, target.name)} It was thrown away")
        except (OSError, urllib.error.URLError, ValueError) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
        finally:
            partial.unlink(missing_ok=True)
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


def _fetch(url: str, partial: Path, timeout_s: float) -> None:
    """Write what the address gives into the file."""
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "velodrome"})
    partial.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(request, timeout=timeout_s) as response, open(partial, "wb") as file:
        promised = response.headers.get("Content-Length")
        total = int(promised) if promised and promised.isdigit() else None
        with tqdm(
            total=total, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, leave=False, disable=None
        ) as bar:
            done = 0
            while chunk := response.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > _MAX_BYTES:
                    raise ValueError(f"it sends more than {_MAX_BYTES:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and done != total:
            raise ValueError(f"it broke off after {done:,} of {total:,} bytes")
