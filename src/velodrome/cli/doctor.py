"""`velodrome doctor`: what this machine has, and what is missing."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen, table
from velodrome.cores import usable_cores

# extra -> the modules that it brings
EXTRAS = {
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "pandas": ("pandas",),
    "vision": ("torchvision", "PIL"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
_IMPORT_TIMEOUT_S = 120


def doctor(
    folder: Annotated[Path, typer.Option("--out", help="The folder that is to hold runs.", metavar="DIR")] = Path("."),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what this machine has and what is missing.

    Versions, devices, memory, disk, extras, data sets, and whether a file can be written.
    """
    facts = gather(folder)
    Screen(as_json=json).answer(_lines(facts), facts)


def gather(folder: Path) -> dict[str, Any]:
    """Return everything that `doctor` looks at; nothing is left behind on the disk."""
    import torch

    import velodrome

    writable = try_to_write(folder)
    extras, extra_errors = find_extras()
    return {
        "velodrome": velodrome.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "devices": find_devices(),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "disk_free_gib": None if writable else round(shutil.disk_usage(folder).free / 2**30, 1),
        "write_error": writable,
        "extras": extras,
        "extra_errors": extra_errors,
        "data": find_data(),
    }


def find_devices() -> list[str]:
    """Return the devices that a run can use, best first, as `--device` wants them."""
    import torch

    found = [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def memory_gib() -> float | None:
    """Return the machine's memory, or None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def find_extras() -> tuple[dict[str, str | None], dict[str, str]]:
    """Import every extra's packages, each in a process of its own: one that is there may still not work.

    Returns:
        For each extra the version of its first package, or None when a part of it is missing or fails; and for those that
        fail the last line of what Python said.
    """
    here = {extra: names for extra, names in EXTRAS.items() if all(map(importlib.util.find_spec, names))}
    tries = {extra: _start_import(names) for extra, names in here.items()}
    versions: dict[str, str | None] = dict.fromkeys(EXTRAS)
    errors: dict[str, str] = {}
    for extra, process in tries.items():
        try:
            _, said = process.communicate(timeout=_IMPORT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            errors[extra] = f"its import took longer than {_IMPORT_TIMEOUT_S} s"
            continue
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            errors[extra] = lines[-1] if lines else f"its import ended Python with {process.returncode}"
        else:
            versions[extra] = _version(EXTRAS[extra][0])
    return versions, errors


def _start_import(names: tuple[str, ...]) -> subprocess.Popen[bytes]:
    # The empty entry is the current folder, whose files are the user's and not packages.
    code = f"import sys; sys.path[:] = filter(None, sys.path); import {', '.join(names)}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "present"


def find_data() -> dict[str, str]:
    """Return, for each known data set, where it is or what brings it here; nothing is fetched."""
    from velodrome.data.sources import fetch, known_names
    from velodrome.errors import VelodromeError

    found: dict[str, str] = {}
    for name in known_names():
        found[name] = f"not here; velodrome data fetch {name}"
        with suppress(VelodromeError):
            fetch(name, source="embedded", say=lambda line: None)
            found[name] = f"the embedded subset; for all of it: velodrome data fetch {name}"
        with suppress(VelodromeError):
            found[name] = f"in {fetch(name, source='local', say=lambda line: None)}"
    return found


def try_to_write(folder: Path) -> str | None:
    """Write, flush to the disk and remove a small file; return what went wrong, or None."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".velodrome-doctor-") as file:
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{error.strerror or error} ({folder})"
    return None


def _lines(facts: dict[str, Any]) -> str:
    memory, disk = facts["memory_gib"], facts["disk_free_gib"]
    rows = [
        ("velodrome", facts["velodrome"]),
        ("Python", f"{facts['python']} ({facts['executable']})"),
        ("Platform", facts["platform"]),
        ("torch", facts["torch"]),
        ("Devices", ", ".join(facts["devices"])),
        ("Threads", f"{facts['threads']}; cores that this process may use: {facts['cores']}"),
        ("Memory", "unknown" if memory is None else f"{memory} GiB"),
        ("Disk", "unknown" if disk is None else f"{disk} GiB free"),
        ("Write test", "passed" if facts["write_error"] is None else f"FAILED: {facts['write_error']}"),
    ]
    for extra, version in facts["extras"].items():
        failure = facts["extra_errors"].get(extra)
        missing = f"FAILED: {failure}" if failure else f'missing: pip install "velodrome[{extra}]"'
        rows.append((f"Extra {extra}", version or missing))
    rows += [(f"Data {name}", state) for name, state in facts["data"].items()]
    return table(rows)
