"""Claim: `import velodrome` adds at most 150 ms to `import torch`, and `velodrome --help` answers in under
0.5 s.

Whole processes are timed, from start to exit, in turns. Each round starts a bare interpreter, `import torch`,
`import torch` again (the noise floor), `import torch; import velodrome; velodrome.Trainer`, and `velodrome
--help`.

Byte code is there, as for an installed package.

    python benchmarks/startup.py --rounds 11
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from time import perf_counter

from fresh import as_installed
from harness import add_common_options, environment, interleave, opening, summary, write_record

ARMS = {
    "python": ["-c", "pass"],
    "torch": ["-c", "import torch"],
    "torch_again": ["-c", "import torch"],
    "torch_and_velodrome": ["-c", "import torch; import velodrome; velodrome.Trainer"],
    "help": ["-m", "velodrome", "--help"],
}


def main() -> None:
    """Time the arms, print the medians, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__), epilog="Takes about half a minute, on two idle cores."
    )
    add_common_options(parser, rounds=11)
    options = parser.parse_args()
    rounds = options.rounds

    environ = as_installed()
    arms = {name: partial(time_process, arguments, environ) for name, arguments in ARMS.items()}
    interleave(arms, rounds=1, say=False)  # fills the file cache
    facts = environment(rounds=rounds, children="no PYTHONDONTWRITEBYTECODE, byte code written before; else as it was")
    times = interleave(arms, rounds=rounds, say=False)

    added_ms = [1000 * (b - a) for a, b in zip(times["torch"], times["torch_and_velodrome"], strict=True)]
    noise_ms = [1000 * (b - a) for a, b in zip(times["torch"], times["torch_again"], strict=True)]
    results = {
        "import_torch_s": summary(times["torch"]),
        "added_by_velodrome_ms": summary(added_ms),
        "noise_ms": summary(noise_ms),
        "help_s": summary(times["help"]),
        "bare_python_s": summary(times["python"]),
    }
    print(f"import torch            {results['import_torch_s']['median']:.3f} s")
    print(f"velodrome adds          {results['added_by_velodrome_ms']['median']:.0f} ms (limit 150)")
    print(f"torch against itself    {results['noise_ms']['median']:.0f} ms (noise floor)")
    print(f"velodrome --help        {results['help_s']['median']:.3f} s (limit 0.5)")
    write_record("startup", {"environment": facts, "results": results, "raw_s": times}, options.records)


def time_process(arguments: list[str], environ: dict[str, str]) -> float:
    """Return the seconds that one Python process takes from start to exit."""
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], env=environ, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


if __name__ == "__main__":
    main()
