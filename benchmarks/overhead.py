"""Claim: on ready batches, `fit` adds at most 10 microseconds a step to the raw PyTorch loop.

A model so small that the step itself is cheap (one linear layer, batch of 8), a list of batches that already
exist, the same optimizer, one thread. In turns: the raw loop, the raw loop again (the noise floor),
`velodrome.fit`, the same with a metric and with a run directory that keeps the records, and the explicit loop
(`trainer.epochs`, `epoch.train`, `trainer.step`). The calls are timed whole, starting and finishing included:
opening the run directory and writing the last checkpoint, too. The difference to the raw loop of the same round
is divided by the number of steps.

    python benchmarks/overhead.py --steps 5000 --rounds 11
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

import velodrome as vd
from harness import add_common_options, environment, interleave, summary, write_record

if TYPE_CHECKING:
    from torch import Tensor

    Batches = list[tuple[Tensor, Tensor]]


def raw_loop(batches: Batches) -> tuple[float, Tensor]:
    """Train with nothing around the step; return seconds and the weight."""
    model, optimizer = new_model()
    start = perf_counter()
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return perf_counter() - start, model.weight.detach()


def velodrome_fit(batches: Batches, **more: Any) -> tuple[float, Tensor]:
    """Train with one call."""
    model, optimizer = new_model()
    start = perf_counter()
    vd.fit(model, batches, epochs=1, optimizer=optimizer, loss="cross_entropy", device="cpu", progress=False, **more)
    return perf_counter() - start, model.weight.detach()


def velodrome_fit_metrics(batches: Batches) -> tuple[float, Tensor]:
    """Train with one call, and measure the accuracy of every batch."""
    return velodrome_fit(batches, metrics=["accuracy"])


def velodrome_fit_recorded(batches: Batches) -> tuple[float, Tensor]:
    """Train with one call, with a metric, a journal and its CSV file, and the checkpoint at the end."""
    with tempfile.TemporaryDirectory(prefix="velodrome-bench-") as folder:
        run_dir = Path(folder) / "run"
        return velodrome_fit(batches, metrics=["accuracy"], run_dir=run_dir, loggers=["csv"])


def velodrome_explicit(batches: Batches) -> tuple[float, Tensor]:
    """Train with the explicit loop."""
    model, optimizer = new_model()
    start = perf_counter()
    trainer = vd.Trainer(model, optimizer, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for inputs, targets in epoch.train(batches):
            trainer.step(F.cross_entropy(trainer.model(inputs), targets))
    return perf_counter() - start, model.weight.detach()


def new_model() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def main() -> None:
    """Time the arms, check that all trained the same weights, write the record."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="Takes about half a minute on two idle cores."
    )
    parser.add_argument("--steps", type=int, default=5000)
    add_common_options(parser, rounds=11)
    options = parser.parse_args()
    torch.set_num_threads(1)

    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(options.steps)
    ]
    loops = {
        "raw": raw_loop,
        "raw_again": raw_loop,
        "fit": velodrome_fit,
        "fit_metrics": velodrome_fit_metrics,
        "fit_recorded": velodrome_fit_recorded,
        "explicit": velodrome_explicit,
    }
    arms = {name: partial(loop, batches) for name, loop in loops.items()}
    interleave(arms, rounds=1, say=False)  # warm-up
    facts = environment(threads=1, steps=options.steps, rounds=options.rounds)
    runs = interleave(arms, rounds=options.rounds, say=False)

    times = {name: [seconds for seconds, _ in arm] for name, arm in runs.items()}
    reference = runs["raw"][0][1]
    difference = {name: float((arm[-1][1] - reference).abs().max()) for name, arm in runs.items()}
    microseconds = 1e6 / options.steps
    added = {
        name: summary([(b - a) * microseconds for a, b in zip(times["raw"], times[name], strict=True)])
        for name in loops
        if name != "raw"
    }
    results = {
        "raw_step_us": summary([seconds * microseconds for seconds in times["raw"]]),
        "added_us": added,
        "largest_weight_difference": difference,
    }
    print(f"raw step                {results['raw_step_us']['median']:.1f} us")
    for name, label in (
        ("raw_again", "noise floor"),
        ("fit", "fit adds"),
        ("fit_metrics", "with a metric"),
        ("fit_recorded", "and a run directory"),
        ("explicit", "explicit loop adds"),
    ):
        print(f"{label:<23} {added[name]['median']:+.1f} us a step; weights differ by {difference[name]:g}")
    write_record("overhead", {"environment": facts, "results": results, "raw_s": times}, options.records)


if __name__ == "__main__":
    main()
