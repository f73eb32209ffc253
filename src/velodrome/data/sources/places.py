"""Where a data set's files may lie already: a local folder, the system's packages, or inside Velodrome itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["embedded_folder", "find_files", "local_folders", "system_folders", "unpack_system_package"]

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
    """Return where all files lie, each gzipped or plain, in the first folder that has every one of them."""
    wanted = list(names)
    for folder in folders:
        found = {name: path for name in wanted for path in (folder / f"{name}.gz", folder / name) if path.is_file()}
        if len(found) == len(wanted):
            return found
    return None


def unpack_system_package(package: str, name: str, target: Path) -> bool:
    """Fetch a Debian package without installing it, and put the data set's files into the target folder.

    Needs neither root nor an installation; False when this is no such system, or it has no access to the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="velodrome-") as scratch:
        os.chmod(scratch, 0o755)  # apt's own user reads here
        for command in (["apt-get", "download", "-qq", package], ["dpkg-deb", "-x", f"{package}.deb", "unpacked"]):
            if command[0] == "dpkg-deb":
                archives = list(Path(scratch).glob("*.deb"))
                if not archives:
                    return False
                command[2] = archives[0].name
            try:
                subprocess.run(
                    command, cwd=scratch, check=True, timeout=120, capture_output=True, stdin=subprocess.DEVNULL
                )
            except (OSError, subprocess.SubprocessError):
                return False
        files = sorted(Path(scratch, "unpacked").glob(f"usr/share/datasets/{name}/*.gz"))
        if not files:
            return False
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            partial = target / f".{file.name}.partial"
            shutil.copyfile(file, partial)
            partial.replace(target / file.name)
    return True
