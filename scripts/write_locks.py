"""Write requirements.lock and requirements-dev.lock: the versions that `make train` and `make test` install.

Resolves in a fresh virtual environment, so that nothing installed earlier leaks in. The lock files hold plain
pins: no hashes (a build of torch for another device has another hash), no index lines, no local version such
as `+cpu`. torch's own binary companions (`nvidia-*`, `cuda-*`, `triton`) are left out: pip brings those that
the build of torch for this machine asks for.

    python scripts/write_locks.py              # newest versions that pyproject.toml allows, torch as locked
    python scripts/write_locks.py --torch 2.14.0
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
RUN_EXTRAS = ("plots", "tensorboard")  # what the main job writes: curves.png and tb/
DEV_EXTRAS = (
    "pandas",
    "onnx",
)  # onnx: 111 MB and a sixth more time to install, for files that are run before they are handed out
# Some builds of torch refuse setuptools 82, which dropped pkg_resources; one lock serves every build.
SETUPTOOLS = "setuptools>=77,<82"
# Installed without its dependencies: its pin of torch must not replace the build that is already there.
TORCHVISION_FOR_TORCH = {"2.11": "0.26.0", "2.12": "0.27.0", "2.13": "0.28.0"}
BROUGHT_BY_TORCH = re.compile(r"(nvidia-|cuda-|triton\b|pytorch-triton)")
NOT_PINNED = {"pip", "velodrome"}

RUN_HEADER = """\
# Written by `make lock`; do not edit. What training needs, with the extras plots and tensorboard.
# nvidia-*, cuda-* and triton are absent on purpose: they come with the build of torch that pip picks.
"""
DEV_HEADER = """\
# Written by `make lock`; do not edit. What the checks need on top of requirements.lock.
# Complete, so it is installed with --no-deps.
"""


def main() -> None:
    """Resolve twice in one fresh environment: first what training needs, then what the checks add."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", default=locked_torch(), help="torch version to pin (%(default)s)")
    torch_version = parser.parse_args().torch

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    run_needs = [*project["project"]["dependencies"], SETUPTOOLS]
    run_needs += [need for name in RUN_EXTRAS for need in extras[name]]
    dev_needs = [*project["dependency-groups"]["dev"]]
    dev_needs += [need for name in DEV_EXTRAS for need in extras[name]]
    torchvision = TORCHVISION_FOR_TORCH[torch_version.rpartition(".")[0]]

    with tempfile.TemporaryDirectory(prefix="velodrome-lock-") as folder:
        print("Making a fresh environment", flush=True)
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        print("Resolving what training needs (a minute or two)", flush=True)
        pip(python, "install", "--quiet", f"torch=={torch_version}", *run_needs)
        run_pins = frozen(python)
        print("Resolving what the checks add", flush=True)
        pinned = [f"{name}=={version}" for name, version in run_pins.items() if name != "torch"]
        # First, so that timm, which needs it, does not bring a newer one and with it another torch.
        pip(python, "install", "--quiet", "--no-deps", f"torchvision=={torchvision}")
        pip(python, "install", "--quiet", *pinned, *dev_needs)
        dev_pins = {name: version for name, version in frozen(python).items() if name not in run_pins}
    dev_pins["torchvision"] = torchvision

    write(RUN_LOCK, RUN_HEADER, run_pins)
    write(DEV_LOCK, DEV_HEADER, dev_pins)


def locked_torch() -> str:
    """Return the torch version of the lock file as it stands."""
    text = RUN_LOCK.read_text(encoding="utf-8") if RUN_LOCK.exists() else ""
    found = re.search(r"^torch==(\S+)$", text, re.MULTILINE)
    return found[1] if found else "2.13.0"


def pip(python: Path, *arguments: str) -> str:
    """Run pip in the fresh environment; its errors go to the terminal and end the script."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip {arguments[0]} failed; its reason is above. The lock files are unchanged.")
    return done.stdout


def frozen(python: Path) -> dict[str, str]:
    """Return what the environment holds, as lower-case name -> version without a local part."""
    lines = pip(python, "list", "--format=freeze").splitlines()
    parts = (line.partition("==") for line in lines if "==" in line)
    pins = {name.lower().replace("_", "-"): version.partition("+")[0] for name, _, version in parts}
    return {
        name: version
        for name, version in sorted(pins.items())
        if name not in NOT_PINNED and not BROUGHT_BY_TORCH.match(name)
    }


def write(path: Path, header: str, pins: dict[str, str]) -> None:
    """Write one lock file, sorted."""
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    path.write_text(header + lines, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(pins)} pins")


if __name__ == "__main__":
    main()
