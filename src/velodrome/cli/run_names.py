"""Where a run goes: a folder of its own, inside the folder asked for, whatever name is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.errors import RefusedError
from velodrome.record.run_name import make_run_name, make_slug

if TYPE_CHECKING:
    from pathlib import Path


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
        return out / make_run_name(recipe_name)
    path = out / make_slug(name)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise RefusedError(
            f"{path} exists already, and a run never writes over another. Give another --name, or remove it.", path=path
        )
    return path
