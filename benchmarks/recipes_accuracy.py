"""What the built-in recipes reach: each as it stands, on the CPU, for several seeds.

    python benchmarks/recipes_accuracy.py mnist-cnn fashion-mnist-cnn char-gpt --seeds 0 1 2

The targets were set before anything was tuned: `mnist-cnn` 97.5 % of the 2,000 held out embedded digits after five epochs, for
every seed; `fashion-mnist-cnn` 91 % of the 10,000 test pictures after ten; `char-gpt` a validation loss below that of a bigram
model counted on the same training text (add-one smoothing, `velodrome.data.sources.bigram_loss`). The last epoch counts, not the
best one: choosing an epoch by the validation data would flatter. A recipe's results are replaced in the record, others stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from harness import RECORDS, at_least_one, environment, opening, write_record, zero_or_more
from velodrome.data.sources import Splits, bigram_loss
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe

RECORD = "recipes_accuracy"
ACCURACY = {"mnist-cnn": 0.975, "fashion-mnist-cnn": 0.91}
CHANGES = {"mnist-cnn": ["data.source=embedded"]}


def main() -> None:
    """Train the recipes, write the record, exit 1 where a target was missed."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes as long as the trainings do: with all three recipes and seeds about half an hour on two idle cores.",
    )
    parser.add_argument("recipes", nargs="*", default=[*ACCURACY, "char-gpt"], help="which ones (all)")
    parser.add_argument("--seeds", type=zero_or_more, nargs="+", default=[0, 1, 2], help="at least two (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes, such as data.root=FOLDER")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of torch (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the record")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("a standard deviation needs at least two different seeds")
    torch.set_num_threads(options.threads)
    failed = []
    for name in options.recipes:
        results = measure(name, options.seeds, options.set)
        facts = environment(threads=options.threads, seeds=options.seeds)
        add_to_record(name, {"results": results, "environment": facts}, options.records)
        if not results["reached"]:
            failed.append(name)
    if failed:
        sys.exit(f"Did not reach the target: {', '.join(failed)}.")


def measure(name: str, seeds: list[int], changes: list[str]) -> dict[str, Any]:
    """Train a recipe once a seed; return each run's last row and what they come to."""
    runs = []
    target, key, baseline, origin = ACCURACY.get(name), "val/accuracy", None, ""
    for seed in seeds:
        overrides = [*CHANGES.get(name, []), "train.device=cpu", f"train.seed={seed}", *changes]
        ready = build(load_recipe(name, overrides), say=lambda line: None)
        origin = ready.data.origin
        if target is None:
            notes = {"class_names": ready.data.class_names, "origin": origin}
            baseline = bigram_loss(Splits(train=ready.data.train, val=ready.data.val, **notes))
            target, key = baseline, "val/loss"
        began, began_cpu = time.perf_counter(), time.process_time()
        result = ready.make_trainer(progress=False).fit(ready.train, ready.val, **ready.fit_arguments)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        history = [row[key] for row in result.history]
        runs.append(
            {"seed": seed, "last": history[-1], "history": history, "seconds": seconds, "cpu_seconds": cpu_seconds}
        )
        print(f"{name}, seed {seed}: {key} {history[-1]:.4f} after {len(history)} epochs, {seconds:.0f} s", flush=True)
    assert target is not None
    last = [run["last"] for run in runs]
    return {
        "key": key,
        "target": target,
        "is_bigram_loss": baseline is not None,
        "reached": all(value < target if key == "val/loss" else value >= target for value in last),
        "n": len(last),
        "mean": mean(last),
        "sd": stdev(last),
        "min": min(last),
        "max": max(last),
        "epochs": len(runs[0]["history"]),
        "num_parameters": sum(p.numel() for p in ready.model.parameters()),
        "data": origin.rpartition(" from ")[0] or origin,  # no folder of this machine
        "runs": runs,
    }


def add_to_record(name: str, entry: dict[str, Any], folder: Path) -> None:
    """Write the record with this recipe's entry new."""
    path = folder / f"{RECORD}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_record(RECORD, {**old, name: entry}, folder)


if __name__ == "__main__":
    main()
