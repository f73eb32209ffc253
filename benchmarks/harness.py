"""What every benchmark shares: interleaved runs, medians and ratios, the facts of the machine, the record.

A lone time says more about the machine's mood than about the code. So the arms take turns (A B, B A, A B,
...), one arm runs twice a round to show how far two equal things lie apart (the A/A noise floor), and results
are ratios or differences within a round, of which the median is reported. Raw times stay in the record.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
PACKAGES = ("velodrome", "torch", "torchvision", "numpy", "safetensors", "torchmetrics")


def interleave(arms: Mapping[str, Callable[[], T]], *, rounds: int, say: bool = True) -> dict[str, list[T]]:
    """Run every arm once a round, in an order that turns round each time; return the results by arm.

    Garbage is collected before each run, so that no arm pays for the one before.
    """
    results: dict[str, list[T]] = {name: [] for name in arms}
    for round_index in range(rounds):
        names = list(arms) if round_index % 2 == 0 else list(reversed(arms))
        for name in names:
            gc.collect()
            if say:
                print(f"  round {round_index + 1}/{rounds}: {name}", flush=True)
            results[name].append(arms[name]())
    return results


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--rounds", type=at_least_one, default=rounds, help="how often every arm runs (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the record")


def at_least_one(text: str) -> int:
    """Return the number that an option gives: of rounds or steps, say, of which none would measure nothing."""
    return _at_least(1, text)


def zero_or_more(text: str) -> int:
    """Return the number that an option gives."""
    return _at_least(0, text)


def above_zero(text: str) -> float:
    """Return the time that an option gives."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0.")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}.")
    return value


def opening(doc: str | None) -> str:
    """Return the first paragraph of a docstring as one line: what a script says of itself under --help."""
    return " ".join((doc or "").partition("\n\n")[0].split())


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Return n, median, smallest and largest of some numbers."""
    return {"n": len(values), "median": median(values), "min": min(values), "max": max(values)}


def environment(packages: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Return what a reader needs to judge a number: versions, commit, processor, cores, load, date.

    Args:
        packages: whose versions are wanted beside those of `PACKAGES`.
        more: goes in as it is.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed for name in (*PACKAGES, *packages) if (installed := installed_version(name))},
        **more,
    }


def write_record(name: str, record: Mapping[str, Any], folder: Path) -> Path:
    """Write `<folder>/<name>.json` and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return path


def cpu_model() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """Return the output of a git command in the repository, or an empty string where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_version(name: str) -> str:
    """Return the version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
