"""Memory that one step frees is kept for the next: on the CPU, glibc would give it back to the system after every step.

The gradients of a small model are freed at the end of a step and made again in the next one. glibc returns what is free at the top of its
heap, and the next step pays for every page again, which the system has to clear and map. The numbers that are computed are the same.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 512 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20  # glibc takes no more; larger pieces go back to the system when they are freed
_is_kept = False
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let the process keep up to 512 MiB that it has freed, in pieces of up to 32 MiB; return whether it does now.

    What the user has set is respected: glibc's variables `MALLOC_TRIM_THRESHOLD_` and its kin, and malloc's part of `GLIBC_TUNABLES`.
    Without glibc (macOS, Windows, musl), nothing happens.

    Cost: two system calls' worth of time; memory that is free stays resident until `give_back_freed_memory`.
    Source: mallopt(3).
    """
    global _is_kept
    if any(os.environ.get(name) for name in _OF_THE_USER) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = _glibc()
    if libc is None:
        return False
    kept = libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    _is_kept = bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) and kept)
    return _is_kept


def give_back_freed_memory() -> None:
    """Return what is free to the system, as at the end of a run; nothing happens where nothing was kept."""
    libc = _glibc() if _is_kept else None
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        _ = libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim
    except (OSError, TypeError, AttributeError):  # Windows has no CDLL(None)
        return None
    return libc
