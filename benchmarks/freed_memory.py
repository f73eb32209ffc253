"""Claim: on a CPU with glibc, keeping the memory that a step frees makes the step faster, and changes none of its bits.

glibc gives what is free at the top of its heap back to the system, so that the gradients of a small model are paid for page by page in
every step. `keep_freed_memory` is what a run of Velodrome does at its start. No trainer here: the bare loop of `zero_grad`, forward,
loss, `backward` and `step`, on one ready batch of 64 pictures, with a fused SGD. Every arm runs in a process of its own, in turns:

    as glibc has it     nothing is set
    again               the noise floor
    kept                `keep_freed_memory` before the model is made

Jobs: the quickstart's network in fp32 and under bf16 autocast, and a small CNN. Beside the time of a step: the page faults of a step, the
most memory that was resident, and whether the final weights are equal bit for bit.

    python benchmarks/freed_memory.py --rounds 5 --threads 2
"""

from __future__ import annotations

import argparse
import contextlib
import resource
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from fresh import CHILDREN, Outcome, add_child_options, differences, flat_weights, is_child, run_fresh, serve
from harness import add_common_options, environment, interleave, opening, ratios, summary, write_record, zero_or_more
from models import cnn, mlp
from velodrome.step.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

BATCH, WARM_UP_STEPS = 64, 20
AS_IS, AGAIN, KEPT = ARMS = ("as glibc has it", "again", "kept")
# Name -> network, whether it runs under bf16 autocast, and how many steps take about a second.
JOBS: dict[str, tuple[Callable[[], nn.Module], bool, int]] = {
    "MLP, fp32": (mlp, False, 400),
    "MLP, bf16 autocast": (mlp, True, 400),
    "CNN, fp32": (cnn, False, 100),
}


def train(job: str, *, steps: int, keep: bool) -> Outcome:
    """Train on one ready batch; return the time of all steps after the first few, their page faults and the weights."""
    is_kept = keep_freed_memory() if keep else False
    build, bf16, _ = JOBS[job]
    torch.manual_seed(0)
    model = build()
    inputs, targets = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    precision = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else contextlib.nullcontext

    def run(num: int) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            with precision():
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()

    run(WARM_UP_STEPS)
    faults, start = page_faults(), perf_counter()
    run(steps)
    seconds = perf_counter() - start
    notes = {"step_us": 1e6 * seconds / steps, "page_faults": (page_faults() - faults) / steps, "kept": is_kept}
    return Outcome(seconds=seconds, weights=flat_weights(model), notes=notes)


def page_faults() -> int:
    """Return how many pages this process was given so far without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def compare(runs: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return each arm's step, its part of that of the first arm round by round, its page faults, memory and weights."""
    step_us = {name: [run.notes["step_us"] for run in arm] for name, arm in runs.items()}
    learned = differences(runs, AS_IS)
    return {
        name: {
            "step_us": summary(step_us[name]),
            "part": summary(ratios(step_us[name], step_us[AS_IS])),
            "page_faults": summary([run.notes["page_faults"] for run in arm]),
            "peak_mb": summary([run.peak_rss_bytes / 1e6 for run in arm]),
            "kept": arm[-1].notes["kept"],
            "weights_equal": learned[name]["weights_equal"],
        }
        for name, arm in runs.items()
    }


def main() -> None:
    """Time the arms, compare what they learned, write the record."""
    parser = argparse.ArgumentParser(description=opening(__doc__), epilog="Takes about two minutes on two idle cores.")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="JOB", help="%(choices)s")
    parser.add_argument("--steps", type=zero_or_more, default=0, help="of every arm; 0 is about a second's worth")
    add_common_options(parser, rounds=5)
    add_child_options(parser, threads=2)
    options = parser.parse_args()
    if is_child(options):
        serve(partial(train, options.jobs[0], steps=options.steps, keep=options.arm == KEPT), options)
        return

    facts = environment(threads=options.threads, rounds=options.rounds, children=CHILDREN)
    results, raw = {}, {}
    for job in options.jobs:
        arguments = ["--jobs", job, "--steps", str(options.steps or JOBS[job][2])]
        arms = {name: partial(run_fresh, __file__, arguments, arm=name, threads=options.threads) for name in ARMS}
        runs = interleave(arms, rounds=options.rounds, say=False)
        results[job] = compare(runs)
        raw[job] = {name: [run.notes["step_us"] for run in arm] for name, arm in runs.items()}
        for name, each in results[job].items():
            print(
                f"{job:<19} {name:<16} {each['step_us']['median']:7.0f} us a step, {each['part']['median']:.2f} of the first, "
                f"{each['page_faults']['median']:6.1f} page faults, peak {each['peak_mb']['median']:.0f} MB, "
                f"{'equal' if each['weights_equal'] else 'OTHER'} bits"
            )
    write_record("freed_memory", {"environment": facts, "results": results, "step_us": raw}, options.records)
    if not all(each["weights_equal"] for arms in results.values() for each in arms.values()):
        raise SystemExit("The arms of a job trained different weights.")
    if not all(arms[KEPT]["kept"] for arms in results.values()):
        print("Nothing was kept: this is not glibc, or one of its variables for malloc is set.")


if __name__ == "__main__":
    main()
