"""Claim: of the trainers for PyTorch, `velodrome.fit` adds least to a step, below any other.

The model is so small that the step itself is cheap (one linear layer, batch of 8), the batches exist already, every trainer is
given the same list of them in the way its own documentation shows (`peer_steps.py`), the same first weights, the same SGD, one thread.
Nothing is written to disk and no bar is drawn, by anybody. In turns: the raw loop, the raw loop again (the noise floor), and each trainer.
Beside the times: how far the final weights lie from those of the raw loop. Trainers that are not installed are left out.

    python benchmarks/peers.py --steps 2000 --rounds 7
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch

from harness import add_common_options, at_least_one, environment, interleave, opening, write_record
from overhead import compare, ready_batches
from peer_steps import PEERS, raw_loader_loop, raw_loop, velodrome_fit_metrics
from trainers import PACKAGES, installed

if TYPE_CHECKING:
    from torch import Tensor

    from peer_steps import Arm


def quietly(arm: partial[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """Run an arm with its prints kept in memory."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return arm()


def main() -> None:
    """Time the arms, check that all trained the same weights, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about five minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--steps", type=at_least_one, default=2000)
    parser.add_argument("--only", default="", help="peers, separated by commas; all that are installed when left out")
    add_common_options(parser, rounds=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    batches = ready_batches(options.steps)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    peers = installed(PEERS, only)
    loops: dict[str, Arm] = {
        "raw": raw_loop,
        "raw again": raw_loop,
        "raw over a loader": raw_loader_loop,
        "velodrome.fit": velodrome_fit_metrics,
        **{name: PEERS[name] for name in peers},
    }
    arms = {name: partial(quietly, partial(loop, batches)) for name, loop in loops.items()}
    interleave(arms, rounds=1, say=False)  # warm-up
    facts = environment(PACKAGES, threads=1, steps=options.steps, rounds=options.rounds)
    runs = interleave(arms, rounds=options.rounds, say=False)
    results = compare(runs, loops, steps=options.steps) | {"left_out": sorted(set(PEERS) - set(peers))}
    difference = results["largest_weight_difference"]
    print(f"raw step {results['raw_step_us']['median']:.1f} us")
    for name, each in sorted(results["added_us"].items(), key=lambda item: item[1]["median"]):
        print(f"{name:<24} {each['median']:+9.1f} us a step; weights differ by {difference[name]:.2g}")
    raw_s = {name: [seconds for seconds, _ in arm] for name, arm in runs.items()}
    write_record("peers", {"environment": facts, "results": results, "raw_s": raw_s}, options.records)


if __name__ == "__main__":
    main()
