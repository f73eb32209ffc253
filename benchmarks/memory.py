"""Claim: training by `velodrome.fit` adds at most 50 MB more than by the loop over a DataLoader, and its peak is below that of other trainers.

The job of `end_to_end.py`, one epoch, every arm in a process of its own. Peak: the most memory that was ever resident, interpreter,
libraries and data included. Added: beyond what was resident when the tensors were handed over; what an arm imports was imported by then,
ours with its trainer, so that libraries show in the peak and not in what is added. The same arm was seen to add 34 MB and 74 MB, by what the
allocator makes of it, so the range is shown. A run of ours keeps the memory that its steps free
(`freed_memory.py`), so there is an arm in which it does not: glibc's own tunables are named, which tells Velodrome to leave malloc
alone. Trainers that are not installed are left out. Memory of a CUDA device is in `gpu.py`.

    python benchmarks/memory.py --data-root data
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

import end_to_end
from fresh import CHILDREN, Outcome, run_fresh
from harness import (
    add_common_options,
    at_least_one,
    environment,
    interleave,
    opening,
    summary,
    write_record,
    zero_or_more,
)
from peer_jobs import PEERS
from trainers import PACKAGES, installed

GIVEN_BACK = "velodrome.fit, freed memory given back"
LEFT_ALONE = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}  # its default


def main() -> None:
    """Run the arms, print their memory, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 5 minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the IDX files are (%(default)s)")
    parser.add_argument("--samples", type=zero_or_more, default=0, help="train with the first so many only; 0 is all")
    parser.add_argument("--only", nargs="+", default=[], metavar="TRAINER", help="these beside our own arms")
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads())
    add_common_options(parser, rounds=3)
    options = parser.parse_args()

    own = [name for name in end_to_end.OWN_ARMS if not name.startswith(end_to_end.FLOOR)]
    wanted = [*own, *installed(PEERS, options.only)]
    arguments = ["--data-root", str(options.data_root), "--epochs", "1", "--samples", str(options.samples)]
    arms = {
        name: partial(run_fresh, end_to_end.__file__, arguments, arm=name, threads=options.threads) for name in wanted
    }
    arms[GIVEN_BACK] = partial(
        run_fresh, end_to_end.__file__, arguments, arm=end_to_end.OURS, threads=options.threads, variables=LEFT_ALONE
    )
    facts = environment(
        PACKAGES, threads=options.threads, samples=options.samples, rounds=options.rounds, children=CHILDREN
    )
    runs = interleave(arms, rounds=options.rounds)
    results = {"arms": {name: measured(outcomes) for name, outcomes in runs.items()}}
    for name, each in sorted(results["arms"].items(), key=lambda item: item[1]["peak_mb"]["median"]):
        print(
            f"{name:<26} peak {each['peak_mb']['median']:7.0f} MB, added {each['added_mb']['median']:6.0f} MB ({each['added_mb']['min']:.0f} to {each['added_mb']['max']:.0f})"
        )
    results["left_out"] = sorted(set(PEERS) - set(wanted))
    write_record("memory", {"environment": facts, "results": results}, options.records)


def measured(outcomes: list[Outcome]) -> dict[str, dict[str, float | int]]:
    """Return peak and addition in megabytes."""
    return {
        "peak_mb": summary([each.peak_rss_bytes / 1e6 for each in outcomes]),
        "added_mb": summary([(each.peak_rss_bytes - each.rss_before_bytes) / 1e6 for each in outcomes]),
    }


if __name__ == "__main__":
    main()
