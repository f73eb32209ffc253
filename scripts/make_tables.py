"""Write the measured tables of README.md and docs/ from benchmarks/records/*.json.

A page marks the place with `<!-- table: NAME -->` and `<!-- end table -->`; what stands between is replaced.
Numbers are never typed by hand, so a page cannot claim what was not measured.

    python scripts/make_tables.py            # write
    python scripts/make_tables.py --check    # change nothing; exit 1 where a table is stale
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)
Record = dict[str, Any]


def tutorial_loop(record: Record) -> str:
    """Return the table of the tutorial loop against `fit`, with its accuracy and its conditions."""
    results, facts = record["results"], record["environment"]
    tutorial_accuracy, our_accuracy = results["tutorial_accuracy"][-1], results["velodrome_accuracy"][-1]
    rows = [
        ["", "seconds", "speed", "test accuracy", "test loss"],
        [
            "the quickstart's loop",
            f"{results['tutorial_s']['median']:.1f}",
            "1",
            f"{tutorial_accuracy:.2%}",
            f"{results['tutorial_test_loss'][-1]:.6f}",
        ],
        [
            "`velodrome.fit`",
            f"{results['velodrome_s']['median']:.1f}",
            f"**{results['speedup']['median']:.2f}**",
            f"{our_accuracy:.2%}",
            f"{results['velodrome_test_loss'][-1]:.6f}",
        ],
        [
            "the recipe `fashion-mnist-tutorial`",
            f"{results['recipe_s']['median']:.1f}",
            f"**{results['recipe_speedup']['median']:.2f}**",
            f"{results['recipe_accuracy'][-1]:.2%}",
            f"{results['recipe_test_loss'][-1]:.6f}",
        ],
    ]
    if "switches_s" in results:
        rows.append(
            [
                f"the recipe with {', '.join(f'`{each}`' for each in facts['recipe_switches'])}",
                f"{results['switches_s']['median']:.1f}",
                f"**{results['switches_speedup']['median']:.2f}**",
                f"{results['switches_accuracy'][-1]:.2%}",
                f"{results['switches_test_loss'][-1]:.6f}",
            ]
        )
    weights = (
        "final weights are equal bit for bit"
        if results["weights_equal"] and results["recipe_weights_equal"]
        else f"final weights differ by at most {results['largest_weight_difference']:.1g}"
    )
    low, high, noise = (results["speedup"]["min"], results["speedup"]["max"], results["noise"]["median"])
    note = (
        f"FashionMNIST, MLP 784-512-512-10, SGD, {facts['epochs']} epochs: preparing the data, training and "
        f"evaluation together. Medians of {results['speedup']['n']} interleaved rounds, the speed from "
        f"{low:.2f} to {high:.2f}; the quickstart's loop against itself gives {noise:.2f}. "
        f"The {weights}{', but for the last row' if 'switches_s' in results else ''}. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def overhead(record: Record) -> str:
    """Return the table of what a step costs more than in the raw loop."""
    results, facts = record["results"], record["environment"]
    names = {
        "fit": "`velodrome.fit`",
        "fit_metrics": "`velodrome.fit` with a metric",
        "fit_recorded": "`velodrome.fit` with a metric and a run directory",
        "explicit": "the explicit loop",
        "raw_again": "the raw loop again",
    }
    added = results["added_us"]
    rows = [["", "added to a step, microseconds"]]
    rows += [[label, f"{added[name]['median']:.1f}"] for name, label in names.items() if name in added]
    note = (
        f"On ready batches, against a raw step of {results['raw_step_us']['median']:.0f} microseconds; "
        f"{facts['steps']:,} steps, medians of {facts['rounds']} interleaved rounds. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def peers(record: Record) -> str:
    """Return the table of what other trainers add to a step."""
    results, facts = record["results"], record["environment"]
    added = sorted(results["added_us"].items(), key=lambda item: item[1]["median"])
    versions = {name.lower().removeprefix("pytorch-"): version for name, version in facts["versions"].items()}
    rows = [["", "version", "added to a step, microseconds", "largest difference of a weight"]]
    for name, each in added:
        version = versions.get(name.partition(",")[0].split()[0].partition(".")[0].lower(), "")
        label = f"**`{name}`**" if name.startswith("velodrome") else name
        rows.append([label, version, f"{each['median']:+,.0f}", f"{results['largest_weight_difference'][name]:.1g}"])
    note = (
        f"Ready batches, one linear layer, against a raw step of {results['raw_step_us']['median']:.0f} microseconds; "
        f"{facts['steps']:,} steps, medians of {facts['rounds']} interleaved rounds. Trainers that insist on a DataLoader are given "
        f'one that hands the batches through, which by itself costs what "raw over a loader" says. {conditions(facts)}'
    )
    return f"{table(rows)}\n\n{note}"


def startup(record: Record) -> str:
    """Return the table of start-up times."""
    results, facts = record["results"], record["environment"]
    added_ms = results["added_by_velodrome_ms"]["median"]
    rows = [
        ["", "median"],
        ["`import torch`", f"{results['import_torch_s']['median']:.2f} s"],
        ["`import velodrome; velodrome.Trainer` adds", f"{added_ms:.0f} ms"],
        ["`velodrome --help`, whole process", f"{results['help_s']['median']:.2f} s"],
    ]
    return f"{table(rows)}\n\nMedians of {facts['rounds']} interleaved rounds. {conditions(facts)}"


def recipes_accuracy(record: Record) -> str:
    """Return the table of what the recipes reach, with the target of each; one record holds several recipes."""
    rows = [["recipe", "reaches", "standard deviation", "worst seed", "target", "epochs"]]
    for name, entry in record.items():
        results = entry["results"]
        is_loss = results["key"] == "val/loss"
        show = (lambda value: f"{value:.3f}") if is_loss else (lambda value: f"{value:.2%}")
        unit = " nats a character" if is_loss else ""
        bound = f"below {show(results['target'])}, a bigram model" if is_loss else f"{results['target']:.1%}"
        rows.append(
            [
                f"`{name}`",
                f"**{show(results['mean'])}**{unit}",
                show(results["sd"]),
                show(results["max" if is_loss else "min"]),
                bound,
                str(results["epochs"]),
            ]
        )
    facts = list(record.values())[-1]["environment"]
    data = "; ".join(f"`{name}`: {entry['results']['data']}" for name, entry in record.items())
    counts = " and ".join(sorted({str(entry["results"]["n"]) for entry in record.values()}))
    note = f"The last epoch on validation data, means over {counts} seeds. {data}. {conditions(facts)}"
    return f"{table(rows)}\n\n{note}"


def saving(record: Record) -> str:
    """Return the table of what a save costs."""
    names = {
        "background": "Velodrome, in the background",
        "foreground": "Velodrome, in the foreground",
        "torch.save": "`torch.save`, not flushed",
        "torch.save and fsync": "`torch.save` and `fsync`",
    }
    rows, copies = [["", "weights", "training waits", "added to the run"]], []
    for name, found in record["results"].items():
        for arm, label in names.items():
            stall, added = found["stall_ms"][arm]["median"], found["added_ms_per_save"][arm]["median"]
            rows.append(
                [f"{label}, {name}", f"{found['num_weights'] / 1e6:.2f} million", f"{stall:.1f} ms", f"{added:.0f} ms"]
            )
        noise = found["added_ms_per_save"]["no save again"]["median"]
        copies.append(
            f"{name}: the copy alone takes {found['copy_ms']:.1f} ms, the loop against itself gives {noise:.0f} ms"
        )
    facts = record["environment"]
    note = (
        f"For each save, weights and Adam's state; medians of {facts['rounds']} interleaved rounds. {'; '.join(copies)}. "
        f"All arms load the same weights. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def end_to_end(record: Record) -> str:
    """Return the table of the tutorial's job by every trainer."""
    results, facts = record["results"], record["environment"]
    versions = {name.lower().removeprefix("pytorch-"): version for name, version in facts["versions"].items()}
    head = [
        "",
        "version",
        "seconds",
        "times `fit`",
        "test accuracy",
        "largest difference of a weight",
        "peak memory, MB",
    ]
    rows = [head]
    for name, each in sorted(results["arms"].items(), key=lambda item: item[1]["seconds"]["median"]):
        ours = name.startswith("velodrome")
        rows.append(
            [
                re.sub(r"^([^,]*)", r"**`\1`**", name) if ours else name,
                versions.get(name.split()[0].lower(), ""),
                f"{each['seconds']['median']:.1f}",
                f"{each['times_ours']['median']:.2f}",
                f"{each['accuracy']:.2%}" if "accuracy" in each else "",
                f"{each['largest_weight_difference']:.1g}" if "weights_equal" in each else "",
                f"{each['peak_rss_mb']:,.0f}",
            ]
        )
    against = (
        f"The best of the other trainers takes {results['best_peer']['median']:.2f} times as long as `fit`, the median "
        f"{results['median_peer']['median']:.2f} times. "
        if "best_peer" in results
        else ""
    )
    note = (
        f"FashionMNIST, MLP 784-512-512-10, SGD, {facts['epochs']} epochs, the same tensors for all: training and an evaluation after each epoch. "
        f"{against}`fit` takes {results['times_floor']['median']:.2f} times what the bare steps alone take on one ready batch; "
        f"the loop over a loader against itself gives {results['noise']['median']:.2f}. Switches: {switches(facts)}. "
        f"Medians of {facts['rounds']} interleaved rounds, each arm in a process of its own. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def recipe_job(record: Record) -> str:
    """Return the table of a recipe's job against the loops that people write."""
    results, facts = record["results"], record["environment"]
    names = {
        "tutorial": "as a tutorial writes it",
        "tutorial again": "the same again",
        "well written": "well written",
        "fit": "**`velodrome.fit`**, the tutorial's loaders",
        "fit, as recipe": "**`velodrome.fit`** as the recipe",
        "fit, switches": "**`velodrome.fit`** with switches",
    }
    rows = [["", "seconds", "speed", "validation loss", "differs from its loop by", "peak memory, MB"]]
    for name, each in results["arms"].items():
        rows.append(
            [
                names[name],
                f"{each['seconds']['median']:.1f}",
                f"{each['speed']['median']:.2f}",
                f"{each['loss']:.6f}",
                "0 (same bits)" if each["weights_equal"] else f"{each['loss_difference']:.1g}",
                f"{each['peak_rss_mb']:,.0f}",
            ]
        )
    note = (
        f"{facts['epochs']} epochs, samples in order. The first `fit` is compared with the tutorial's loop, the other two with the well-written "
        f"one. Switches: {switches(facts)}. Medians of {facts['rounds']} interleaved rounds, each arm in a process of its own. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def memory(record: Record) -> str:
    """Return the table of resident memory."""
    results, facts = record["results"], record["environment"]
    rows = [["", "peak, MB", "added by training, MB"]]
    for name, each in sorted(results["arms"].items(), key=lambda item: item[1]["peak_mb"]["median"]):
        label = f"**`{name}`**" if name == "velodrome.fit" else name
        rows.append([label, f"{each['peak_mb']['median']:,.0f}", f"{each['added_mb']['median']:,.0f}"])
    note = (
        "One epoch of FashionMNIST, MLP 784-512-512-10. Peak: the whole process, libraries and data included; added: beyond what was "
        f"resident when the tensors were handed over. Medians of {facts['rounds']} runs. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def peers_startup(record: Record) -> str:
    """Return the table of times from the start of Python to the end of the first update."""
    results, facts = record["results"], record["environment"]
    rows = [["", "seconds", "more than the raw loop"]]
    for name, each in sorted(results["seconds"].items(), key=lambda item: item[1]["median"]):
        added = results["added_s"].get(name)
        label = f"**`{name}`**" if name.startswith("velodrome") else name
        rows.append([label, f"{each['median']:.2f}", f"{added['median']:+.2f}" if added else ""])
    return f"{table(rows)}\n\nMedians of {facts['rounds']} interleaved rounds of whole processes. {conditions(facts)}"


def speedruns(record: Record) -> str:
    """Return the table of speedruns; one record holds several runs."""
    rows = [["run", "target", "seeds", "reached it", "accuracy", "seconds", "epochs", "steps", "precision"]]
    for name, entry in record.items():
        results = entry["results"]
        accuracy, seconds = results["accuracy"], results["seconds"]
        rows.append(
            [
                f"`{name}`",
                f"{results['target']:.1%}",
                str(results["n"]),
                str(results["reached"]),
                f"**{accuracy['mean']:.2%}** ± {accuracy['sd']:.2%}",
                f"**{seconds['mean']:.1f}** ± {seconds['sd']:.1f}",
                f"{results['epochs']:g}",
                f"{results['steps']:,}",
                results["precision"],
            ]
        )
    facts = list(record.values())[-1]["environment"]
    return f"{table(rows)}\n\nMean ± standard deviation over seeds; steps and epochs are fixed beforehand. {conditions(facts)}"


def gpu(record: Record) -> str:
    """Return the table of steps on a CUDA device."""
    facts = record["environment"]
    rows = [
        [
            "",
            "microseconds a step",
            "speed",
            "against the tutorial's loop",
            "largest difference of a loss",
            "peak on the device, MB",
        ]
    ]
    for model, results in record["results"].items():
        for name, each in results["arms"].items():
            ours = name.startswith(("eager", "captured"))
            rows.append(
                [
                    f"{model.upper()}, {f'**`fit`**, {name}' if ours else name}",
                    f"{each['step_us']['median']:.1f}",
                    f"{each['times_raw']['median']:.2f}",
                    f"{each['times_tutorial']['median']:.1f}" if "times_tutorial" in each else "",
                    f"{each['largest_loss_difference']:.1g}" if "largest_loss_difference" in each else "",
                    f"{each['peak_allocated_mb']:.0f}",
                ]
            )
    waits = [
        f"{name} ({model.upper()}) {each['added']}"
        for model, results in record["results"].items()
        for name, each in results.get("waits", {}).items()
    ]
    counted = f"Waits for the device that 40 more steps add: {', '.join(waits)}. " if waits else ""
    versions = facts["versions"]["torch"]
    note = (
        f"Batches of 64, {facts['rows']:,} pictures on the device. Speed is against the raw loop on the same tensors. {counted}tests/gpu: {record['tests']}. "
        f"{facts['device']}, torch {versions}, {facts['date']}."
    )
    return f"{table(rows)}\n\n{note}"


def switches(facts: Record) -> str:
    """Return a record's switches as they are given to `fit`."""
    return ", ".join(f"`{name}={value!r}`" for name, value in facts["switches"].items()) or "none"


TABLES: Mapping[str, Callable[[Record], str]] = {
    "tutorial_loop": tutorial_loop,
    "overhead": overhead,
    "peers": peers,
    "recipes_accuracy": recipes_accuracy,
    "startup": startup,
    "saving": saving,
    "end_to_end": end_to_end,
    "cnn": recipe_job,
    "char_gpt": recipe_job,
    "memory": memory,
    "peers_startup": peers_startup,
    "speedruns": speedruns,
    "gpu": gpu,
}
# What makes a record, where it is not `make bench`.
MADE_BY = {
    "peers": "make bench-peers",
    "end_to_end": "make bench-peers",
    "memory": "make bench-peers",
    "peers_startup": "make bench-peers",
    "speedruns": "make speedruns",
    "gpu": "make bench-gpu",
}


def conditions(facts: Record) -> str:
    """Return the sentence on machine, versions and date."""
    count = facts.get("threads")
    threads = f", {count} thread{'s' if count != 1 else ''}" if count else ""
    torch = facts["versions"]["torch"]
    return f"{facts['cpu']}, {facts['cores']} cores{threads}, torch {torch}, {facts['date']}."


def table(rows: list[list[str]]) -> str:
    """Return a Markdown table; the first row is its head, numbers stand to the right."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def filled(text: str, records: Path = RECORDS) -> str:
    """Return a page with every marked table written anew; one without a record says so."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            sys.exit(f"There is no table {name!r}. Known: {', '.join(sorted(TABLES))}.")
        path = records / f"{name}.json"
        if path.exists():
            body = TABLES[name](json.loads(path.read_text(encoding="utf-8")))
        else:
            body = f"Not measured yet: run `{MADE_BY.get(name, 'make bench')}`."
        return f"{match[1]}{body}\n{match[3]}"

    return MARKED.sub(replace, text)


def pages(root: Path = ROOT) -> list[Path]:
    """Return every page that may hold a table."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main() -> None:
    """Write or check every page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is stale")
    check = parser.parse_args().check
    stale = []
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"Tables do not match benchmarks/records: {', '.join(stale)}. Run: make tables")
    print(f"Tables {'match' if check or not stale else 'written'}: {', '.join(stale) or 'every page'}")


if __name__ == "__main__":
    main()
