"""Where a data set's files may lie already: a local folder, the system's packages, or inside Velodrome itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["embedded_folder", "find_files", "local_folders", "system_folders", "unpack_system_package"]

_PACKAGE_TIMEOUT_S = 120.0
_SYSTEM_PREFIXES = ("/usr/local/share", "/usr/share")


def local_folders(name: str, torchvision_name: str, root: Path | None) -> list[Path]:
    """Return the local folders to look in: the root itself, and torchvision's layout below it."""
    base = Path("data") / name if root is None else root
    folders = [base, base / torchvision_name / "raw", base / name]
    return folders if root is not None else [*folders, Path("data") / torchvision_name / "raw"]


def system_folders(name: str) -> list[Path]:
    """Return the folders in which a system package puts the data set."""
    prefixes = [*os.environ.get("XDG_DATA_DIRS", "").split(":"), *_SYSTEM_PREFIXES]
    return [Path(prefix) / "datasets" / name for prefix in dict.fromkeys(prefixes) if prefix]


def embedded_folder(name: str) -> Path:
    """Return the folder with the subset that is part of this package."""
    return Path(__file__).parent.parent / "embedded" / name


def find_files(folders: Iterable[Path], names: Iterable[str]) -> dict[str, Path] | None:
    """Return where all files lie, each plain or gzipped, in the first folder that has every one of them.

    Files of one kind go before a mixture: a lone plain file beside a gzipped set may be of another origin.
    """
    wanted = list(names)
    for folder in folders:
        plain = {name: folder / name for name in wanted if os.path.isfile(folder / name)}
        zipped = {name: folder / f"{name}.gz" for name in wanted if os.path.isfile(folder / f"{name}.gz")}
        for found in (plain, zipped, {**plain, **zipped}):
            if len(found) == len(wanted):
                return {name: found[name] for name in wanted}
    return None


def unpack_system_package(
    package: str, name: str, target: Path, *, names: Iterable[str] = (), timeout_s: float = _PACKAGE_TIMEOUT_S
) -> bool:
    """Fetch a Debian package without installing it, and put the data set's files into the target folder.

    Needs neither root nor an installation; False when this is no such system, or it has no access to the package. Files
    that lie in the target already stay as they are.

    Args:
        package: its name.
        name: the data set's folder inside it.
        target: where the files go: all of them or none.
        names: the files that must be in it, without ".gz".
        timeout_s: for each of the two commands.
    Raises:
        OSError: the target cannot be written to.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="velodrome-", ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o755)  # apt's own user reads here
        if not _run_bounded(["apt-get", "download", "-qq", package], scratch, timeout_s):
            return False
        archive = next(Path(scratch).glob("*.deb"), None)
        if archive is None or not _run_bounded(["dpkg-deb", "-x", archive.name, "unpacked"], scratch, timeout_s):
            return False
        files = sorted(Path(scratch, "unpacked").glob(f"usr/share/datasets/{name}/*.gz"))
        if not files or {f"{wanted}.gz" for wanted in names} - {file.name for file in files}:
            return False
        _copy_missing(files, target)
    return True


def _run_bounded(command: list[str], folder: str, timeout_s: float) -> bool:
    """Run a command without a terminal and return whether it succeeded; after `timeout_s` it ends with all its children."""
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError:
        return False
    try:
        return process.wait(timeout_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:  # also at Ctrl-C, which a session of its own does not hear of
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _copy_missing(files: list[Path], target: Path) -> None:
    """Copy files into a folder, beside one another first and to their names when all of them are there."""
    target.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not (target / file.name).exists()]
    partials = [target / f".{file.name}.{secrets.token_hex(4)}.partial" for file in missing]
    try:
        for file, partial in zip(missing, partials, strict=True):
            shutil.copyfile(file, partial)
        for file, partial in zip(missing, partials, strict=True):
            partial.replace(target / file.name)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
