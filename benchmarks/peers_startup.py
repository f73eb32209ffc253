"""Claim: from starting Python to the first update, `velodrome.fit` is among the trainers the one with the least to import.

Whole processes are timed, from start to exit, in turns: import the trainer, build a linear layer, train one batch of 8 (the arms of
`peers.py`). The raw loop, which imports torch and nothing else, is there twice: the noise floor. The other trainers live in an
environment of their own (`make bench-peers` makes it).

    python benchmarks/peers_startup.py --rounds 5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

import harness
from fresh import child_environment
from harness import add_common_options, environment, interleave, summary, write_record

RAW, OURS = "raw", "velodrome.fit"
CHILD = """
import contextlib, io, logging, sys, warnings
sys.path.insert(0, {folder!r})
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import torch
torch.set_num_threads(1)
import peers
arms = {{"raw": peers.raw_loop, "velodrome.fit": peers.velodrome_fit}} | {{name: arm for name, (_, arm) in peers.PEERS.items()}}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    arms[{name!r}]([(torch.ones(8, 16), torch.zeros(8, dtype=torch.long))])
"""


def main() -> None:
    """Time the arms, print the medians, write the record."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Takes about 4 minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TRAINER", help="these beside raw and velodrome.fit")
    add_common_options(parser, rounds=5)
    options = parser.parse_args()

    from peer_jobs import installed_peers
    from peers import PACKAGES, PEERS

    installed = installed_peers()
    wanted = [name for name in installed if name in (options.only or installed)]
    arms = {name: partial(time_process, name.removesuffix(" again")) for name in (RAW, f"{RAW} again", OURS, *wanted)}
    interleave(arms, rounds=1, say=False)  # fills the file cache and writes byte code
    harness.PACKAGES = (*harness.PACKAGES, *PACKAGES.values())
    facts = environment(threads=1, rounds=options.rounds)
    times = interleave(arms, rounds=options.rounds, say=False)
    results = {
        "seconds": {name: summary(arm) for name, arm in times.items()},
        "added_s": {
            name: summary([b - a for a, b in zip(times[RAW], arm, strict=True)]) for name, arm in times.items() if name != RAW
        },
        "left_out": sorted(set(PEERS) - set(wanted)),
    }  # fmt: skip
    for name, each in sorted(results["seconds"].items(), key=lambda item: item[1]["median"]):
        print(f"{name:<24} {each['median']:.2f} s from start to the end of the first update")
    write_record("peers_startup", {"environment": facts, "results": results, "raw_s": times}, options.records)


def time_process(name: str) -> float:
    """Return the seconds that a Python process takes to import a trainer and train one batch."""
    code = CHILD.format(folder=str(Path(__file__).resolve().parent), name=name)
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code], env=child_environment(1), check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


if __name__ == "__main__":
    main()
