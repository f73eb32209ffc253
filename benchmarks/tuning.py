"""`velodrome tune` against combinations set by hand: does it find the speed that is there, in time, and does what it writes learn as well?

    python benchmarks/tuning.py fashion-mnist-tutorial fashion-mnist-cnn char-gpt --minutes 3 --data-root data

Accepted when on three recipes the tuned recipe has at least 90 % of the speed of the best combination by hand, tuning took no longer than its
time box, and the tuned recipe trains to the same accuracy: the mean over the seeds is at most two standard deviations of the
recipe's own seeds, or 0.5 points (0.5 % of a loss), worse.

By hand means, for each recipe, first every combination of the strong switches (threads, precision, channels_last for convolutions), then on the best
of them, one after the other and kept where it pays, the rest: compilation, batches of the evaluation, the optimizer not fused.
Workers, pinned memory and data in memory are not among them: these three recipes read tensors, which no worker touches. Speed is that of the
whole run, start-up and compilation included: (time until the first steps are done + epochs x time of an epoch with its evaluation).

Each combination takes turns with the tuned recipe, each in a process of its own; the ratio of the time of an epoch is taken within a turn, and the
median counts. The best of many is flattered by luck, so it is measured anew, with more turns, and only that counts. The tuned recipe takes turns with itself as well: that is the noise. Accuracy is compared after all epochs of the tutorial's job, two
of the CNN and one of the GPT. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from harness import above_zero, add_common_options, at_least_one, environment, opening, write_record, zero_or_more
from velodrome.advise.tuning.measure import take_turns, whole_run_speed
from velodrome.advise.tuning.remote import RemoteBench, TrialError
from velodrome.advise.tuning.search import Search
from velodrome.advise.tuning.setup import Change, Setup
from velodrome.advise.tuning.writing import write_tuned_recipe
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe

RECIPES = ("fashion-mnist-tutorial", "fashion-mnist-cnn", "char-gpt")
STRONG: dict[str, list[Any]] = {"train.threads": [1, 2], "train.precision": ["fp32", "bf16"]}
"""every combination of these; "train.channels_last" joins for convolutions"""
REST: list[tuple[str, list[Any]]] = [
    ("train.compile", [True]),
    ("train.eval_batch_size", [250, 1000, 4000]),
    ("optimizer.fused", [False]),
]
"""one after the other, on the best so far"""
EPOCHS = {"fashion-mnist-cnn": 2, "char-gpt": 1}
"""for the accuracy; those of the recipe where it is not named"""
WANTED_SHARE = 0.9
MOST_POINTS_WORSE = 0.005
OVERTIME_S = 15.0  # of the last process that is under way


def main() -> None:
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 25 minutes for the three recipes on two idle cores: three times 3 for tune, 3 for the combinations, 2 for the accuracy.",
    )
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="which ones (all three)")
    parser.add_argument("--minutes", type=above_zero, default=3.0, help="the time box of tune (%(default)s)")
    parser.add_argument(
        "--data-root", type=Path, default=None, help="where FashionMNIST's IDX files are (found by itself)"
    )
    parser.add_argument(
        "--epochs", type=at_least_one, default=None, help="of the accuracy's runs (2 for the CNN, 1 for the GPT)"
    )
    parser.add_argument("--seconds", type=above_zero, default=0.5, help="of training a turn (%(default)s)")
    parser.add_argument(
        "--seeds",
        type=zero_or_more,
        nargs="*",
        default=[0, 1, 2],
        help="trained both ways; none trains nothing (%(default)s)",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--combinations", type=zero_or_more, default=0, help="only so many of them by hand (all)")
    add_common_options(parser, rounds=3)
    options = parser.parse_args()
    results, failed = {}, []
    for recipe in options.recipes:
        results[recipe] = one = measure(recipe, options)
        failed += [f"{recipe}: {name}" for name, held in one["accepted"].items() if not held]
    write_record(
        "tuning",
        {
            "results": results,
            "environment": environment(minutes=options.minutes, seconds=options.seconds, rounds=options.rounds),
        },
        options.records,
    )
    if failed:
        sys.exit(f"Not reached: {'; '.join(failed)}.")


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tune a recipe, compare with the grid, and train both."""
    changes = list(options.set)
    if options.data_root is not None and load_recipe(recipe, changes).recipe.data.name == "fashion-mnist":
        changes.append(f"data.root={options.data_root}")
    setup = Setup(recipe=recipe, overrides=tuple(changes))
    search = Search(
        setup,
        load_recipe(recipe, changes).recipe,
        seconds=60 * options.minutes,
        say=lambda line: print(f"  {line}", flush=True),
    )
    tuning = search.run()
    print("\n".join(tuning.lines()), flush=True)
    chosen = setup.with_change(tuning.change) if tuning.change is not None and tuning.is_worth_it else setup
    speeds = compare_by_hand(setup, chosen, options)
    best = speeds["best"]
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


def compare_by_hand(setup: Setup, chosen: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Return how fast each combination is against the tuned recipe: 1 is as fast."""
    tuned = RemoteBench(chosen, timeout_s=600)
    facts = tuned.start()
    recipe = load_recipe(setup.recipe, setup.overrides).recipe
    found: list[dict[str, Any]] = []

    def measure_one(fields: dict[str, Any]) -> dict[str, Any] | None:
        if options.combinations and len(found) >= options.combinations:
            return None
        try:
            one = compare(tuned, facts, setup.with_change(Change(fields=fields)), options)
        except TrialError as error:
            print(f"  {fields}: {error}", flush=True)
            return None
        print(
            f"  {fields}: {one['speed']:.3f} of the tuned recipe's speed, an epoch {one['epoch_speed']:.3f}", flush=True
        )
        found.append({"fields": fields, **one})
        return found[-1]

    try:
        noise = compare(tuned, facts, chosen, options)
        for fields in strong_combinations(has_convolutions=facts.has_convolutions):
            measure_one(fields)
        for field, values in REST:
            best = max(found, key=lambda each: each["speed"], default={"fields": {}})["fields"]
            for value in values:
                if value != usual(recipe, field):
                    measure_one({**best, field: value})
        best = max(found, key=lambda each: each["speed"], default=None)
        if best is not None:
            again = compare(
                tuned, facts, setup.with_change(Change(fields=best["fields"])), options, rounds=2 * options.rounds + 1
            )
            best = {**again, "fields": best["fields"], "speed_when_chosen": best["speed"]}
    finally:
        tuned.close()
    return {"noise": noise["noise"], "combinations": found, "best": best}


def compare(
    tuned: RemoteBench, facts: Any, other: Setup, options: argparse.Namespace, *, rounds: int | None = None
) -> dict[str, Any]:
    """Have a configuration take turns with the tuned one; return its speed, of the whole run and of an epoch."""
    arm = RemoteBench(other, timeout_s=600)
    try:
        its_facts = arm.start()
        turns = take_turns(
            tuned,
            arm,
            steps=(facts.steps_per_epoch, its_facts.steps_per_epoch),
            rounds=rounds or options.rounds,
            seconds=options.seconds,
        )
    finally:
        arm.close()
    epoch_s = median([each.epoch_s(facts.steps_per_epoch) for each in turns.first])
    epochs = (facts.total_steps or 0) / (facts.steps_per_epoch or 1)
    return {
        "speed": whole_run_speed(turns.speed_up, epoch_s, epochs, (facts.warm_up_s, its_facts.warm_up_s)),
        "epoch_speed": turns.speed_up,
        "ratios": turns.ratios,
        "warm_up_s": its_facts.warm_up_s,
        "noise": turns.spread,
    }


def strong_combinations(*, has_convolutions: bool) -> list[dict[str, Any]]:
    """Return every combination of the strong switches, those that change least first."""
    axes = {**STRONG, **({"train.channels_last": [False, True]} if has_convolutions else {})}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def usual(recipe: Any, field: str) -> Any:
    """Return what a recipe has in a field, fused where it says nothing of it."""
    table, _, key = field.partition(".")
    return recipe.optimizer.arguments.get(key, True) if table == "optimizer" else getattr(recipe.train, key)


def train_both(setup: Setup, chosen: Setup, tuning: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Train the recipe and the tuned one, which is read from the file that tune writes, for each seed."""
    epochs = options.epochs or EPOCHS.get(setup.recipe)
    shorter = [] if epochs is None else [f"train.epochs={epochs}"]
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
                runs[name].append(train(source, [*overrides, *shorter, f"train.seed={seed}"]))
                print(f"  {name}, seed {seed}: {runs[name][-1]}", flush=True)
    key = "val/accuracy" if "val/accuracy" in runs["recipe"][0] else "val/loss"
    before, after = ([run[key] for run in runs[name]] for name in ("recipe", "tuned"))
    worse = mean(before) - mean(after) if key == "val/accuracy" else (mean(after) - mean(before)) / mean(before)
    spread = stdev(before) / (1 if key == "val/accuracy" else mean(before)) if len(before) > 1 else 0.0
    speed = mean(run["seconds"] for run in runs["recipe"]) / mean(run["seconds"] for run in runs["tuned"])
    allowed = max(2 * spread, MOST_POINTS_WORSE)
    return {
        "key": key,
        "epochs": epochs or load_recipe(setup.recipe, setup.overrides).recipe.train.epochs,
        "mean": {"recipe": mean(before), "tuned": mean(after)},
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
