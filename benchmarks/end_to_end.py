"""Claim: the tutorial's job by `velodrome.fit`, training and evaluation, is faster than by any other trainer fed the same
tensors: 1.2 times the best of them, twice the median, and within 1.1 of the bare steps alone.

FashionMNIST, 784-512-512-10, SGD 1e-3, batches of 64 in order, an evaluation in batches of 1,000 after every epoch: the recipe
`fashion-mnist-tutorial`. Every arm runs in a process of its own, with the same number of threads, the same tensors in memory, the
same first weights. Timed: from handing the tensors over to the last evaluation; not timed: starting Python, importing (the compiler
included that torch imports when the first of its optimizers is made), reading the files. Beside the times: loss and accuracy of every epoch, how far the final weights lie from the quickstart's loop, and memory.

The floor is the bare eager step on one ready batch, as often as the job has steps: no data, no evaluation. It is there twice: with
the memory as glibc manages it, which is what a loop of one's own has, and with freed memory kept, as a run of `fit` does
(`freed_memory.py`): without that `fit` can be faster than the floor.

The arm with switches has the optimizer by name, which is fused, and what `--switches` says; all others step with the same plain
`torch.optim.SGD`. Trainers that are not installed are left out.

    python benchmarks/end_to_end.py --data-root data --epochs 5 --rounds 3
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import velodrome as vd
from fresh import CHILDREN, COMPILER, Outcome, add_child_options, differences, is_child, run_fresh, serve
from harness import (
    add_common_options,
    at_least_one,
    environment,
    interleave,
    opening,
    ratios,
    summary,
    write_record,
    zero_or_more,
)
from peer_jobs import PEERS, TensorJob, floor, raw, velodrome_fit, velodrome_switched
from trainers import PACKAGES, installed, trainer_of
from velodrome.data.sources import load_fashion_mnist

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE, OURS, SWITCHED = "raw over a loader", "velodrome.fit", "velodrome.fit, switches"
FLOOR, KEPT_FLOOR = "floor: bare steps", "floor: bare steps, freed memory kept"
OWN_ARMS: dict[str, Callable[..., Outcome]] = {
    REFERENCE: raw,
    f"{REFERENCE} again": raw,
    FLOOR: floor,
    KEPT_FLOOR: partial(floor, keep_freed=True),
    OURS: velodrome_fit,
    SWITCHED: velodrome_switched,
}
ARMS = {**OWN_ARMS, **PEERS}


def main() -> None:
    """Time the arms, compare what they learned, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 15 minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the IDX files are (%(default)s)")
    parser.add_argument("--epochs", type=at_least_one, default=5)
    parser.add_argument("--samples", type=zero_or_more, default=0, help="train with the first so many only; 0 is all")
    parser.add_argument("--switches", default='{"precision": "bf16"}', metavar="JSON", help="of the switched arm")
    add_common_options(parser, rounds=3)
    add_child_options(parser, threads=torch.get_num_threads())
    options = parser.parse_args()
    if is_child(options):
        run_arm(options)
        return

    wanted = [*OWN_ARMS, *installed(PEERS, options.only)]
    arguments = ["--data-root", str(options.data_root), "--epochs", str(options.epochs)]
    arguments += ["--samples", str(options.samples), "--switches", options.switches]
    arms = {name: partial(run_fresh, __file__, arguments, arm=name, threads=options.threads) for name in wanted}
    facts = environment(
        PACKAGES,
        threads=options.threads,
        epochs=options.epochs,
        samples=options.samples,
        rounds=options.rounds,
        switches={"optimizer": "sgd", **json.loads(options.switches)},
        children=CHILDREN,
    )
    runs = interleave(arms, rounds=options.rounds)
    results = compare(runs) | {"left_out": sorted(set(PEERS) - set(wanted))}
    for line in sentences(results):
        print(line)
    raw_s = {name: [run.seconds for run in arm] for name, arm in runs.items()}
    write_record("end_to_end", {"environment": facts, "results": results, "raw_s": raw_s}, options.records)


def run_arm(options: argparse.Namespace) -> None:
    """Import what the arm needs, read the data, and run it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.arm in PEERS:
        importlib.import_module(trainer_of(options.arm).modules[0])
    else:
        _ = vd.Trainer  # `import velodrome` alone imports little
    data = load_fashion_mnist(options.data_root, source="local", say=lambda line: None)
    count = options.samples or len(data.train[0])
    job = TensorJob(train=tuple(each[:count] for each in data.train), val=data.val, epochs=options.epochs)  # type: ignore[arg-type]
    switches = json.loads(options.switches) if options.arm == SWITCHED else {}
    imports = () if options.arm == SWITCHED else COMPILER
    serve(partial(ARMS[options.arm], job, **switches), options, imports=imports)


def compare(runs: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return each arm's time, its ratio to ours within a round, its memory, and how far its weights and accuracy are away.

    The floor's ratio is ours to it; `best_peer` and `median_peer` are theirs to ours, round by round.
    """
    seconds = {name: [run.seconds for run in arm] for name, arm in runs.items()}
    learned = differences(runs, REFERENCE)
    arms = {
        name: {
            "seconds": summary(seconds[name]),
            "times_ours": summary(ratios(seconds[name], seconds[OURS])),
            "peak_rss_mb": max(run.peak_rss_bytes for run in arm) / 1e6,
            "added_rss_mb": max(run.peak_rss_bytes - run.rss_before_bytes for run in arm) / 1e6,
            **learned[name],
        }
        for name, arm in runs.items()
    }
    peers = [seconds[name] for name in runs if name in PEERS]
    whole_floor = [run.seconds + run.notes["evaluation_s"] for run in runs[FLOOR]]
    found: dict[str, Any] = {
        "arms": arms,
        "times_floor": summary(ratios(seconds[OURS], seconds[FLOOR])),
        "times_kept_floor": summary(ratios(seconds[OURS], seconds[KEPT_FLOOR])),
        "times_floor_with_evaluation": summary(ratios(seconds[OURS], whole_floor)),
        "noise": summary(ratios(seconds[REFERENCE], seconds[f"{REFERENCE} again"])),
        "switches_speed": summary(ratios(seconds[OURS], seconds[SWITCHED])),
    }
    if peers:
        found["best_peer"] = summary(ratios([min(times) for times in zip(*peers, strict=True)], seconds[OURS]))
        found["median_peer"] = summary(ratios([median(times) for times in zip(*peers, strict=True)], seconds[OURS]))
    return found


def sentences(results: dict[str, Any]) -> list[str]:
    """Return the result in words."""
    lines = [
        f"{name:<26} {each['seconds']['median']:7.2f} s, {each['times_ours']['median']:5.2f} times ours"
        + (f", accuracy {each['accuracy']:.2%}" if "accuracy" in each else "")
        + (f", weights differ by {each['largest_weight_difference']:.2g}" if "weights_equal" in each else "")
        + f", peak {each['peak_rss_mb']:.0f} MB"
        for name, each in sorted(results["arms"].items(), key=lambda item: item[1]["seconds"]["median"])
    ]
    if "best_peer" in results:
        lines.append(f"the best of the others takes {results['best_peer']['median']:.2f} times ours (goal 1.2)")
        lines.append(f"the median of the others takes {results['median_peer']['median']:.2f} times ours (goal 2)")
    lines.append(
        f"ours takes {results['times_floor']['median']:.2f} times the bare steps (goal 1.1), "
        f"{results['times_kept_floor']['median']:.2f} times where these keep freed memory too, "
        f"{results['times_floor_with_evaluation']['median']:.2f} times with the bare evaluation"
    )
    lines.append(f"switches: {results['switches_speed']['median']:.2f} times as fast as without them")
    lines.append(f"noise floor {results['noise']['median']:.2f} (the loop over a loader against itself)")
    return lines


if __name__ == "__main__":
    main()
