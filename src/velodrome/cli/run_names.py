"""Where a run goes: a folder of its own, inside the folder asked for, whatever name is given."""

from __future__ import annotations

import re
from pathlib import Path

from velodrome.errors import RefusedError, VelodromeError
from velodrome.record.reading import read_record, refuse_links
from velodrome.record.run_name import make_run_name, make_slug

__all__ = ["choose_run_dir", "find_run_dir", "num_processes_of"]


def find_run_dir(resume: str, out: Path, name: str | None, recipe_name: str) -> Path | None:
    """Return the run directory to go on with, or None to begin a new one.

    Args:
        resume: "never", "auto", or a run directory or checkpoint folder.
        out, name, recipe_name: as for `choose_run_dir`; "auto" without a name is the newest run of the recipe in there.
    Raises:
        RefusedError: a path was given that holds no run, or one of whose files is a link.
    """
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume).expanduser()
        for folder in (path, path.absolute().parent.parent):  # a checkpoint lies in run/checkpoints/
            if (folder / "run.json").is_file():
                refuse_links(folder)  # before its recipe is read
                return folder
        raise RefusedError(
            f"--resume {resume}: there is no run in it. Give auto, never or a run directory, which holds run.json."
        )
    if name is not None:
        path = out / make_slug(name)
        return path if (path / "run.json").is_file() else None
    pattern = re.compile(rf"{re.escape(make_slug(recipe_name))}-\d{{8}}-\d{{6}}-[0-9a-f]{{6}}")
    runs = [path for path in out.glob("*/") if pattern.fullmatch(path.name) and (path / "run.json").is_file()]
    return max(runs, key=lambda path: path.name, default=None)


def num_processes_of(run_dir: Path) -> int:
    """Return with how many processes a run was last trained; 1 where its `run.json` does not say."""
    try:
        processes = read_record(run_dir).get("processes")
    except (OSError, VelodromeError):
        return 1  # what is wrong with the file is said when the run is opened
    return processes if isinstance(processes, int) and not isinstance(processes, bool) and processes > 0 else 1


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
