"""Claim: the CNN and the small GPT, too, train faster by `fit` than by the loops that people write, with equal losses.

Each arm runs in a process of its own, with the same number of threads, the same first weights and the samples in the
file's order. Timed: preparing the loaders, training, an evaluation after each epoch; not timed: starting Python,
importing, reading the files. In turns:

    tutorial         one sample at a time through a DataLoader, `.item()` where it prints
    tutorial again   the noise floor
    well written     tensors in memory, fused optimizer, no waits, evaluation in large batches
    fit              handed the tutorial's own DataLoaders and optimizer: the same bits
    fit, as recipe   tensors and an optimizer by name, as the recipe `fashion-mnist-cnn` or `char-gpt` has it
    fit, switches    the same with what --switches says (bf16 by default)

`fit` is compared with the tutorial's loop, the two after it with the well-written one.

    python benchmarks/recipe_jobs.py --job cnn --data-root data --epochs 2 --rounds 3
    python benchmarks/recipe_jobs.py --job gpt --epochs 1 --rounds 3
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fresh import CHILDREN, COMPILER, Outcome, add_child_options, differences, is_child, run_fresh, serve
from harness import add_common_options, at_least_one, environment, interleave, opening, ratios, summary, write_record
from jobs import load_job, tutorial_loop, velodrome_recipe, velodrome_same_loaders, well_written_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs import Job

RECORD_NAMES = {"cnn": "cnn", "gpt": "char_gpt"}
EPOCHS = {"cnn": 2, "gpt": 1}
ARMS: dict[str, Callable[[Job], Outcome]] = {
    "tutorial": tutorial_loop,
    "tutorial again": tutorial_loop,
    "well written": well_written_loop,
    "fit": velodrome_same_loaders,
    "fit, as recipe": velodrome_recipe,
    "fit, switches": velodrome_recipe,
}


def main() -> None:
    """Time the arms of one job, compare what they learned, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 8 minutes for the CNN and 8 for the GPT on two idle cores.",
    )
    parser.add_argument("--job", choices=list(RECORD_NAMES), default="cnn", help="which one (%(default)s)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the IDX files are (%(default)s)")
    parser.add_argument(
        "--epochs", type=at_least_one, default=None, help="2 for the CNN and 1 for the GPT when left out"
    )
    parser.add_argument("--change", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, for every arm")
    parser.add_argument(
        "--switches", default='{"precision": "bf16"}', metavar="JSON", help="the trainer's, for the last arm"
    )
    add_common_options(parser, rounds=3)
    add_child_options(parser, threads=torch.get_num_threads())
    options = parser.parse_args()
    epochs = options.epochs or EPOCHS[options.job]
    switches = json.loads(options.switches)
    if is_child(options):
        job = load_job(options.job, data_root=options.data_root, epochs=epochs, changes=options.change)
        loop = ARMS[options.arm]
        arm = partial(loop, job, **(switches if options.arm == "fit, switches" else {}))
        serve(arm, options, imports=() if loop is velodrome_recipe else COMPILER)
        return

    arguments = ["--job", options.job, "--data-root", str(options.data_root), "--epochs", str(epochs)]
    arguments += ["--switches", options.switches, *(["--change", *options.change] if options.change else [])]
    names = ["tutorial", *options.only] if options.only else list(ARMS)
    arms = {name: partial(run_fresh, __file__, arguments, arm=name, threads=options.threads) for name in names}
    facts = environment(
        threads=options.threads, epochs=epochs, rounds=options.rounds, switches=switches, children=CHILDREN
    )
    runs = interleave(arms, rounds=options.rounds)
    results = compare(runs)
    for name, entry in results["arms"].items():
        print(
            f"{name:<16} {entry['seconds']['median']:8.2f} s, {entry['speed']['median']:.2f} times as fast, loss {entry['loss']:.6f}"
            f" (differs by {entry['loss_difference']:.2g} from {entry.get('compared_with', 'tutorial')}), accuracy {entry['accuracy']:.2%}, same bits: {entry.get('weights_equal')}"
        )
    raw = {name: [run.seconds for run in arm] for name, arm in runs.items()}
    write_record(RECORD_NAMES[options.job], {"environment": facts, "results": results, "raw_s": raw}, options.records)


def compare(runs: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return each arm's time, speed against the tutorial's loop within a round, memory and distance in what was learned."""
    seconds = {name: [run.seconds for run in arm] for name, arm in runs.items()}
    learned = differences(runs, "tutorial")
    if "well written" in runs:  # both read tensors and have a fused optimizer
        of_well_written = differences(runs, "well written")
        learned |= {name: of_well_written[name] | {"compared_with": "well written"} for name in runs if "," in name}
    return {
        "arms": {
            name: {
                "seconds": summary(seconds[name]),
                "speed": summary(ratios(seconds["tutorial"], seconds[name])),
                "peak_rss_mb": max(run.peak_rss_bytes for run in arm) / 1e6,
                **learned[name],
            }
            for name, arm in runs.items()
        }
    }


if __name__ == "__main__":
    main()
