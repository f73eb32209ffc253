"""Names of run directories: safe on every file system, whatever the label was."""

from __future__ import annotations

import re
import secrets
import unicodedata
from datetime import UTC, datetime

__all__ = ["make_run_name", "make_slug"]

_LONGEST_SLUG = 60
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def make_slug(label: str) -> str:
    """Return the label in `a-z 0-9 - _`, never empty, never a name that Windows keeps for itself.

    Dots go too: `..` is a way out of the folder, and Windows reads `con.x` as the console.

    >>> make_slug("../../Größe: 3e-4"), make_slug("CON"), make_slug("🚲")
    ('grosse-3e-4', 'run-con', 'run')
    """
    ascii_only = unicodedata.normalize("NFKD", label.casefold()).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^a-z0-9_]+", "-", ascii_only.lower()).strip("-_")[:_LONGEST_SLUG].rstrip("-_")
    if not slug:
        return "run"
    return f"run-{slug}" if slug in _RESERVED else slug


def make_run_name(label: str) -> str:
    """Return `<slug>-<utc date>-<utc time>-<6 hex digits>`.

    The random end keeps two runs of one second, or of a clock that was set back, apart.
    """
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{make_slug(label)}-{now}-{secrets.token_hex(3)}"
