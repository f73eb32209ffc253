"""Runs one arm of a benchmark in a process of its own, and brings back what it measured.

Arms that share a process share its caches, its allocator and its lazily imported modules: the first pays for the
others, and memory cannot be told apart. Here every arm starts from nothing, with the same number of threads for every
library that has threads, and leaves an `Outcome` in a folder: numbers as JSON, weights as a file.

`--arm NAME --out FOLDER` make a script the child that runs one arm.
"""

from __future__ import annotations

import compileall
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from harness import at_least_one

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from velodrome import FitResult

# What the records say of the environment that arms run in.
CHILDREN = (
    "numbers of threads set, no PYTHONDONTWRITEBYTECODE, warnings ignored, byte code written before; else as it was"
)
# What torch imports when the first of its optimizers is made: a second or two. Some trainers import it by themselves.
COMPILER = ("torch._dynamo",)
# Every one is read once, when its library starts: they have to be set before the process does.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one arm did."""

    seconds: float
    losses: list[float] = field(default_factory=list)  # on the validation data, after each epoch
    accuracies: list[float] = field(default_factory=list)
    weights: Tensor | None = None  # all parameters, flat
    notes: dict[str, Any] = field(default_factory=dict)  # numbers of this benchmark alone
    rss_before_bytes: int = 0  # resident memory when the arm began: libraries and data
    peak_rss_bytes: int = 0  # the most that was resident by the end

    @classmethod
    def of_fit(cls, result: FitResult, model: nn.Module, *, seconds: float) -> Outcome:
        """Return what a run of `velodrome.fit` did."""
        return cls(
            seconds=seconds,
            losses=[row["val/loss"] for row in result.history],
            accuracies=[row["val/accuracy"] for row in result.history],
            weights=flat_weights(model),
        )


def add_child_options(parser: argparse.ArgumentParser, *, threads: int) -> None:
    """Add the options of a benchmark whose arms run in processes of their own."""
    parser.add_argument("--threads", type=at_least_one, default=threads, help="of every arm (%(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms beside the reference")
    parser.add_argument("--arm", default="", help="run this arm alone, in this process, and leave its result in --out")
    parser.add_argument("--out", type=Path, default=None, help="the folder for the result of --arm")


def is_child(options: argparse.Namespace) -> bool:
    """Return whether this process was started to run one arm."""
    return bool(options.arm)


def serve(arm: Callable[[], Outcome], options: argparse.Namespace, *, imports: Iterable[str] = COMPILER) -> None:
    """Run the arm in this process and leave its outcome in `--out`.

    Args:
        arm: runs what is measured.
        options: those of `add_child_options`.
        imports: modules to import first, since importing is not what these benchmarks time; none where the arm makes its
            optimizer by Velodrome's name for it, which imports no compiler.
    """
    torch.set_num_threads(options.threads)
    for name in imports:
        importlib.import_module(name)
    before = resident_bytes()
    outcome = arm()
    found = asdict(outcome) | {"rss_before_bytes": before, "peak_rss_bytes": peak_bytes()}
    weights = found.pop("weights")
    if options.out is None:
        print(json.dumps(found))
        return
    if weights is not None:
        torch.save(weights, options.out / "weights.pt")
    (options.out / "outcome.json").write_text(json.dumps(found), encoding="utf-8")


def run_fresh(
    script: str,
    arguments: Sequence[str],
    *,
    arm: str,
    threads: int,
    timeout_s: float = 1800,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Run one arm of a script in a process of its own and return what it left.

    Args:
        script: whose child runs the arm.
        arguments: of the script.
        arm: its name.
        threads: of every library.
        timeout_s: how long it may take.
        variables: of the environment, for this arm alone.

    Raises:
        SystemExit: the process failed; the end of what it wrote is shown.
    """
    with tempfile.TemporaryDirectory(prefix="velodrome-bench-") as folder:
        command = [sys.executable, script, *arguments, "--arm", arm, "--out", folder, "--threads", str(threads)]
        done = subprocess.run(
            command,
            env={**child_environment(threads), **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        file = Path(folder) / "outcome.json"
        if done.returncode or not file.exists():
            raise SystemExit(
                f"The arm {arm!r} of {Path(script).name} failed with exit code {done.returncode}:\n"
                f"{(done.stdout + done.stderr)[-3000:]}\nTo see it alone: {' '.join(command[:-4])}"
            )
        weights_file = Path(folder) / "weights.pt"
        weights = torch.load(weights_file, weights_only=True) if weights_file.exists() else None
        return Outcome(**json.loads(file.read_text(encoding="utf-8")), weights=weights)


def child_environment(threads: int) -> dict[str, str]:
    """Return this process's environment as `as_installed` gives it, with the number of threads set for every library."""
    return as_installed() | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONWARNINGS": "ignore"}


def as_installed() -> dict[str, str]:
    """Return this process's environment with Velodrome's byte code ready, as that of an installed package is.

    Where PYTHONDONTWRITEBYTECODE is set, a source tree is compiled anew by every process, and only by ours: other trainers were
    installed, and compiled then. So the variable is left out, and what is not compiled yet is, before anything is timed.
    """
    _write_byte_code()
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@cache
def _write_byte_code() -> None:
    import velodrome

    for folder in (Path(velodrome.__file__).parent, Path(__file__).parent):
        compileall.compile_dir(folder, quiet=1)


def resident_bytes() -> int:
    """Return the memory that is resident now; 0 where the system does not say."""
    return _status_bytes("VmRSS:")


def peak_bytes() -> int:
    """Return the most memory that was ever resident in this process.

    Linux's VmHWM rather than `ru_maxrss`, which a child inherits from the process that started it.
    """
    peak = _status_bytes("VmHWM:")
    if peak:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status_bytes(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def flat_weights(model: nn.Module) -> Tensor:
    """Return all parameters in one vector on the CPU."""
    return torch.cat([parameter.detach().flatten().float().cpu() for parameter in model.parameters()])


def differences(runs: Mapping[str, Sequence[Outcome]], reference: str) -> dict[str, dict[str, Any]]:
    """Return how far each arm's last run lies from that of the reference: weights, loss and accuracy at the end."""
    base = runs[reference][-1]
    found: dict[str, dict[str, Any]] = {}
    for name, arm in runs.items():
        last, entry = arm[-1], {}
        if last.weights is not None and base.weights is not None and last.weights.shape == base.weights.shape:
            entry["weights_equal"] = torch.equal(last.weights, base.weights)
            entry["largest_weight_difference"] = float((last.weights - base.weights).abs().max())
        if last.losses and base.losses:
            entry["loss"], entry["loss_difference"] = last.losses[-1], abs(last.losses[-1] - base.losses[-1])
        if last.accuracies and base.accuracies:
            entry["accuracy"] = last.accuracies[-1]
            entry["accuracy_difference"] = last.accuracies[-1] - base.accuracies[-1]
        found[name] = entry
    return found
