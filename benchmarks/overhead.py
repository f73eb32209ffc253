"""Claim: on ready batches, `fit` adds at most 10 microseconds a step to the raw PyTorch loop.

A model so small that the step itself is cheap (one linear layer, batch of 8), a list of batches that already
exist, the same optimizer, one thread. In turns:

    raw             the loop of four lines
    raw_again       the noise floor
    fit             `velodrome.fit`, nothing but the loss
    fit_metrics     with the accuracy of every batch
    fit_recorded    and a run directory: the journal, its CSV file, the checkpoint at the end
    fit_default     everything as it is by default: metric, run directory, CSV, TensorBoard, curves, progress
    explicit        the explicit loop: `trainer.epochs`, `epoch.train`, `trainer.step`

The calls are timed whole, starting and finishing included: opening the run directory, writing the last checkpoint, drawing the
curves. The difference to the raw loop of the same round is divided by the number of steps. What the default settings cost once a
run, whatever its length, is told from what they cost each step by a run of half as many steps.

    python benchmarks/overhead.py --steps 5000 --rounds 11
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

import velodrome as vd
from harness import add_common_options, at_least_one, environment, interleave, opening, summary, write_record
from peer_steps import new_model, raw_loop, sgd, velodrome_fit, velodrome_fit_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from peer_steps import Batches


def velodrome_fit_recorded(batches: Batches, **more: Any) -> tuple[float, Tensor]:
    """Train with one call, with a metric, a journal and its CSV file, and the checkpoint at the end."""
    with tempfile.TemporaryDirectory(prefix="velodrome-bench-") as folder:
        run = {"run_dir": Path(folder) / "run", "loggers": ["csv"]}
        return velodrome_fit(batches, metrics=["accuracy"], **(run | more))


def velodrome_fit_default(batches: Batches) -> tuple[float, Tensor]:
    """Train with one call and every default of a run with a metric and a directory; what it prints is kept in memory."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return velodrome_fit_recorded(batches, loggers=None, progress="auto")


def velodrome_explicit(batches: Batches) -> tuple[float, Tensor]:
    """Train with the explicit loop."""
    model = new_model()
    optimizer = sgd(model)
    start = perf_counter()
    trainer = vd.Trainer(model, optimizer, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for inputs, targets in epoch.train(batches):
            trainer.step(F.cross_entropy(trainer.model(inputs), targets))
    return perf_counter() - start, model.weight.detach()


LOOPS = {
    "raw": raw_loop,
    "raw_again": raw_loop,
    "fit": velodrome_fit,
    "fit_metrics": velodrome_fit_metrics,
    "fit_recorded": velodrome_fit_recorded,
    "fit_default": velodrome_fit_default,
    "explicit": velodrome_explicit,
}
HALF = {"raw": raw_loop, "fit_default": velodrome_fit_default}  # once more, over half of the batches


def ready_batches(num: int) -> Batches:
    """Return batches of 8 samples for the model of 16 inputs and 4 classes."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator)) for _ in range(num)
    ]


def compare(runs: Mapping[str, Sequence[tuple[float, Tensor]]], arms: Iterable[str], *, steps: int) -> dict[str, Any]:
    """Return the raw step, what each arm adds to it round by round, and how far its weights are away."""
    raw = [seconds for seconds, _ in runs["raw"]]
    reference = runs["raw"][0][1]
    arms = list(arms)
    return {
        "raw_step_us": summary([1e6 * seconds / steps for seconds in raw]),
        "added_us": {
            name: summary([1e6 * (b - a) / steps for a, (b, _) in zip(raw, runs[name], strict=True)])
            for name in arms
            if name != "raw"
        },
        "largest_weight_difference": {name: float((runs[name][-1][1] - reference).abs().max()) for name in arms},
    }


def divided(runs: Mapping[str, Sequence[tuple[float, Tensor]]], *, steps: int, half: int) -> dict[str, Any]:
    """Return what the default settings add to each step and what once a run, from runs of two lengths.

    With s steps a run takes once + s * each: two lengths give both.
    """
    each_us, once_ms = [], []
    names = ("raw", "fit_default", "raw, half", "fit_default, half")
    for raw, ours, raw_half, ours_half in zip(*([seconds for seconds, _ in runs[name]] for name in names), strict=True):
        more, more_half = ours - raw, ours_half - raw_half
        each_s = (more - more_half) / (steps - half)
        each_us.append(1e6 * each_s)
        once_ms.append(1e3 * (more - each_s * steps))
    return {"each_step_us": summary(each_us), "once_a_run_ms": summary(once_ms)}


def main() -> None:
    """Time the arms, check that all trained the same weights, write the record."""
    parser = argparse.ArgumentParser(description=opening(__doc__), epilog="Takes about a minute on two idle cores.")
    parser.add_argument("--steps", type=at_least_one, default=5000)
    add_common_options(parser, rounds=11)
    options = parser.parse_args()
    torch.set_num_threads(1)

    steps, half = options.steps, options.steps // 2
    batches = ready_batches(steps)
    arms = {name: partial(loop, batches) for name, loop in LOOPS.items()}
    arms |= {f"{name}, half": partial(loop, batches[:half]) for name, loop in HALF.items()}
    interleave(arms, rounds=1, say=False)  # warm-up
    facts = environment(threads=1, steps=steps, rounds=options.rounds)
    runs = interleave(arms, rounds=options.rounds, say=False)

    results = compare(runs, LOOPS, steps=steps) | {"fit_default": divided(runs, steps=steps, half=half)}
    print(f"raw step      {results['raw_step_us']['median']:.1f} us")
    for name, each in results["added_us"].items():
        print(
            f"{name:<13} {each['median']:+.1f} us a step; weights differ by {results['largest_weight_difference'][name]:g}"
        )
    default = results["fit_default"]
    print(
        f"of fit_default: {default['each_step_us']['median']:+.1f} us each step, {default['once_a_run_ms']['median']:.0f} ms once a run"
    )
    raw_s = {name: [seconds for seconds, _ in arm] for name, arm in runs.items()}
    write_record("overhead", {"environment": facts, "results": results, "raw_s": raw_s}, options.records)


if __name__ == "__main__":
    main()
