"""Where a run goes: a folder of its own, inside the folder asked for, whatever name is given."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from velodrome.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_NAME = 80  # well below the 255 bytes that file systems allow, with room for what runs write beside it
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # Windows


def choose_run_dir(out: Path, name: str | None, recipe_name: str) -> Path:
    """Return the run directory, which does not exist yet; nothing is created.

    Args:
        out: the folder that holds runs.
        name: the user's name for the run; without one it is `<recipe>-<utc>-<id>`.
        recipe_name: for the default name.
    Raises:
        RefusedError: the named run exists and is not empty, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise RefusedError(f"{out} is a file, so no run can be put into it. Give another folder with --out.", path=out)
    if name is None:
        # The random part tells two runs of one second apart; the time is there for people.
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return out / f"{slug(recipe_name)}-{moment}-{secrets.token_hex(2)}"
    path = out / slug(name)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise RefusedError(
            f"{path} exists already, and a run never writes over another. Give another --name, or remove it.", path=path
        )
    return path


def slug(name: str) -> str:
    """Return a name that is one plain folder on every system: letters, digits, dots, dashes, underscores.

    >>> slug("../../x y"), slug("CON"), slug("")
    ('x-y', 'run-con', 'run')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:_LONGEST_NAME].strip("-._")
    if not plain:
        return "run"
    return f"run-{plain.lower()}" if plain.lower().partition(".")[0] in _RESERVED else plain
