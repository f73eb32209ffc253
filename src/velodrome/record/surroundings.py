"""What a run was made with and where: the facts in `run.json` that help somebody to run it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys

__all__ = ["describe_surroundings", "read_git_state"]

_GIT_TIMEOUT_S = 2.0


def describe_surroundings() -> dict[str, object]:
    """Return command, versions, git state, host and process id.

    Cost: one call of git; 2 s at the very most.
    """
    return {
        "command": [_as_typed(argument) for argument in sys.argv],
        "versions": {
            "velodrome": _find_version("velodrome"),
            "python": platform.python_version(),
            "torch": _find_version("torch"),
            "numpy": _find_version("numpy"),
            "platform": platform.platform(),
        },
        "git": read_git_state(),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _as_typed(argument: str) -> str:
    """Return an argument as it was typed: with LANG=C Python hands letters that are not ASCII over as lone surrogates."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_git_state() -> dict[str, object] | None:
    """Return the commit of the current folder and whether tracked files differ; None outside of git."""
    # --no-optional-locks: never in the way of the user's own git. No fsmonitor: it may start a background
    # process.
    command = (
        "git",
        "--no-optional-locks",
        "-c",
        "core.fsmonitor=false",
        "status",
        "--porcelain=v2",
        "--branch",
    )
    try:
        answer = subprocess.run(
            [*command, "--untracked-files=no", "--ignore-submodules"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.decode("utf-8", "replace").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "(initial)")
    if commit == "(initial)":
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def _find_version(package: str) -> str | None:
    # The version of what is running, where it runs: a checkout may lie in front of an installed copy.
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
