"""Claim: from starting Python to the first update, `velodrome.fit` is among the trainers the one with the least to import.

Whole processes are timed, from start to exit, in turns: import the trainer, build a linear layer, train one batch of 8 (the arms of
`peer_steps.py`, which imports torch and no trainer by itself). The raw loop is a script of its own that imports torch and nothing else; it
is there twice: the noise floor. Ours is there twice as well: with the `torch.optim.SGD` of all the others, and with the optimizer by name: torch
imports its compiler when the first of its optimizers is made, and by name Velodrome makes one without. Byte code is there for all.

    python benchmarks/peers_startup.py --rounds 5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

from fresh import CHILDREN, child_environment
from harness import add_common_options, environment, interleave, opening, summary, write_record
from trainers import PACKAGES, TRAINERS, installed

RAW, OURS, BY_NAME = "raw", "velodrome.fit", "velodrome.fit, optimizer by name"
RAW_CHILD = """
import torch
from torch.nn import functional as F
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for inputs, targets in [(torch.ones(8, 16), torch.zeros(8, dtype=torch.long))]:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
"""
TRAINER_CHILD = """
import contextlib, io, logging, sys, warnings
sys.path.insert(0, {folder!r})
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import torch
torch.set_num_threads(1)
import peer_steps
ours = {{
    "velodrome.fit": peer_steps.velodrome_fit_metrics,
    "velodrome.fit, optimizer by name": lambda batches: peer_steps.velodrome_fit_metrics(batches, optimizer="sgd", lr=peer_steps.LR),
}}
arm = (ours | peer_steps.PEERS)[{name!r}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    arm([(torch.ones(8, 16), torch.zeros(8, dtype=torch.long))])
"""


def main() -> None:
    """Time the arms, print the medians, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 4 minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TRAINER", help="these beside raw and velodrome.fit")
    add_common_options(parser, rounds=5)
    options = parser.parse_args()

    wanted = installed(TRAINERS, options.only)
    arms = {name: partial(time_process, code_of(name)) for name in (RAW, f"{RAW} again", OURS, BY_NAME, *wanted)}
    interleave(arms, rounds=1, say=False)  # fills the file cache
    facts = environment(PACKAGES, threads=1, rounds=options.rounds, children=CHILDREN)
    times = interleave(arms, rounds=options.rounds, say=False)
    results = {
        "seconds": {name: summary(arm) for name, arm in times.items()},
        "added_s": {
            name: summary([b - a for a, b in zip(times[RAW], arm, strict=True)]) for name, arm in times.items() if name != RAW
        },
        "left_out": sorted(set(TRAINERS) - set(wanted)),
    }  # fmt: skip
    for name, each in sorted(results["seconds"].items(), key=lambda item: item[1]["median"]):
        print(f"{name:<24} {each['median']:.2f} s from start to the end of the first update")
    write_record("peers_startup", {"environment": facts, "results": results, "raw_s": times}, options.records)


def code_of(arm: str) -> str:
    """Return what a process of this arm runs."""
    if arm.removesuffix(" again") == RAW:
        return RAW_CHILD
    return TRAINER_CHILD.format(folder=str(Path(__file__).resolve().parent), name=arm)


def time_process(code: str) -> float:
    """Return the seconds that a Python process takes from start to exit."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code], env=child_environment(1), check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


if __name__ == "__main__":
    main()
