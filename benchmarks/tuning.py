"""`velodrome tune` against combinations set by hand: does it find the speed that is there, in time, and does what it writes learn as well?

    python benchmarks/tuning.py fashion-mnist-tutorial fashion-mnist-cnn char-gpt --minutes 3

Accepted when on three recipes the tuned recipe has at least 90 % of the speed of the best combination of the grid below, tuning took no longer
than its time box, and the tuned recipe trains to the same accuracy: the mean over the seeds is at most two standard deviations of
the recipe's own seeds, or 0.5 points (0.5 % of a loss), worse.

Each combination of the grid takes turns with the tuned recipe, each in a process of its own; the ratio of the time of an epoch, evaluation
included, is taken within a turn, and the median counts. The tuned recipe takes turns with itself as well: that is the noise. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from harness import add_common_options, environment, write_record
from velodrome.advise.tuning.measure import take_turns
from velodrome.advise.tuning.remote import RemoteBench, TrialError
from velodrome.advise.tuning.search import Search
from velodrome.advise.tuning.setup import Change, Setup
from velodrome.advise.tuning.writing import write_tuned_recipe
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe

RECIPES = ("fashion-mnist-tutorial", "fashion-mnist-cnn", "char-gpt")
GRID: dict[str, list[Any]] = {
    "train.threads": [1, 2],
    "train.precision": ["fp32", "bf16"],
    "train.eval_batch_size": [250, 1000, 4000],
    "optimizer.fused": [True, False],
}
"""what somebody would set by hand on a CPU; "train.channels_last" joins for convolutions, where recipes have it"""
WANTED_SHARE = 0.9
MOST_POINTS_WORSE = 0.005
OVERTIME_S = 15.0  # of the last process that is under way


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="which ones (all three)")
    parser.add_argument("--minutes", type=float, default=3.0, help="the time box of tune (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of training a turn (%(default)s)")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="trained both ways; none trains nothing (%(default)s)"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes, such as data.root=FOLDER")
    parser.add_argument("--combinations", type=int, default=0, help="only the first so many of the grid (all)")
    add_common_options(parser, rounds=5)
    options = parser.parse_args()
    results, failed = {}, []
    for recipe in options.recipes:
        results[recipe] = one = measure(recipe, options)
        failed += [f"{recipe}: {name}" for name, held in one["accepted"].items() if not held]
    write_record(
        "tuning",
        {"results": results, "environment": environment(minutes=options.minutes, seconds=options.seconds)},
        options.records,
    )
    if failed:
        sys.exit(f"Not reached: {'; '.join(failed)}.")


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tune a recipe, compare with the grid, and train both."""
    setup = Setup(recipe=recipe, overrides=tuple(options.set))
    search = Search(
        setup,
        load_recipe(recipe, options.set).recipe,
        seconds=60 * options.minutes,
        say=lambda line: print(f"  {line}", flush=True),
    )
    tuning = search.run()
    print("\n".join(tuning.lines()), flush=True)
    chosen = setup.with_change(tuning.change) if tuning.change is not None and tuning.is_worth_it else setup
    speeds = compare_with_grid(setup, chosen, options)
    best = max(speeds["combinations"], key=lambda each: each["speed"], default=None)
    share = 1.0 if best is None else 1 / max(best["speed"], 1e-9)
    accuracy = train_both(setup, chosen, tuning, options) if options.seeds else None
    print(
        f"{recipe}: {100 * share:.0f} % of the best by hand ({best}), noise {100 * speeds['noise']:.1f} %", flush=True
    )
    return {
        "tune": json.loads(json.dumps(tuning.to_json(), default=str)),
        "noise": speeds["noise"],
        "combinations": speeds["combinations"],
        "best_by_hand": best,
        "share_of_best": share,
        "accuracy": accuracy,
        "accepted": {
            "speed": share >= WANTED_SHARE,
            "time": tuning.seconds <= tuning.budget_s + OVERTIME_S,
            **({} if accuracy is None else {"accuracy": accuracy["as_good"]}),
        },
    }


def compare_with_grid(setup: Setup, chosen: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Return how fast each combination is against the tuned recipe: 1 is as fast."""
    tuned = RemoteBench(chosen, timeout_s=600)
    facts = tuned.start()
    combinations = []
    try:
        noise = compare(tuned, facts, chosen, options)
        for fields in grid(options.combinations):
            try:
                ratio = compare(tuned, facts, setup.with_change(Change(fields=fields)), options)
            except TrialError as error:
                print(f"  {fields}: {error}", flush=True)
                continue
            print(f"  {fields}: {ratio.speed_up:.3f} of the tuned recipe's speed", flush=True)
            combinations.append({"fields": fields, "speed": ratio.speed_up, "ratios": ratio.ratios})
    finally:
        tuned.close()
    return {"noise": noise.spread, "combinations": combinations}


def compare(tuned: RemoteBench, facts: Any, other: Setup, options: argparse.Namespace) -> Any:
    arm = RemoteBench(other, timeout_s=600)
    try:
        its_facts = arm.start()
        return take_turns(
            tuned,
            arm,
            steps=(facts.steps_per_epoch, its_facts.steps_per_epoch),
            rounds=options.rounds,
            seconds=options.seconds,
        )
    finally:
        arm.close()


def grid(count: int) -> list[dict[str, Any]]:
    """Return the combinations, those that change least first."""
    every = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return every[:count] if count else every


def train_both(setup: Setup, chosen: Setup, tuning: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Train the recipe and the tuned one, which is read from the file that tune writes, for each seed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuned.toml"
        if chosen is not setup:
            write_tuned_recipe(path, setup, tuning)
        sources = {
            "recipe": (setup.recipe, list(setup.overrides)),
            "tuned": (str(path), []) if chosen is not setup else (setup.recipe, list(setup.overrides)),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
        for seed in options.seeds:
            for name, (source, overrides) in sources.items():
                runs[name].append(train(source, [*overrides, f"train.seed={seed}"]))
                print(f"  {name}, seed {seed}: {runs[name][-1]}", flush=True)
    key = "val/accuracy" if "val/accuracy" in runs["recipe"][0] else "val/loss"
    before, after = ([run[key] for run in runs[name]] for name in ("recipe", "tuned"))
    worse = mean(before) - mean(after) if key == "val/accuracy" else (mean(after) - mean(before)) / mean(before)
    spread = stdev(before) / (1 if key == "val/accuracy" else mean(before)) if len(before) > 1 else 0.0
    speed = mean(run["seconds"] for run in runs["recipe"]) / mean(run["seconds"] for run in runs["tuned"])
    allowed = max(2 * spread, MOST_POINTS_WORSE)
    return {
        "key": key,
        "worse": worse,
        "allowed": allowed,
        "as_good": worse <= allowed,
        "whole_run_speed_up": speed,
        "runs": runs,
    }


def train(source: str, overrides: list[str]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        ready = build(load_recipe(source, overrides), say=lambda line: None)
        began = time.perf_counter()
        result = ready.make_trainer(progress=False).fit(ready.train, ready.val, **ready.fit_arguments)
        seconds = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    return {"seconds": seconds, **{key: value for key, value in result.metrics.items() if key.startswith("val/")}}


if __name__ == "__main__":
    main()
