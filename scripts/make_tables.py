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
        f"The {weights}. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def overhead(record: Record) -> str:
    """Return the table of what a step costs more than in the raw loop."""
    results, facts = record["results"], record["environment"]
    names = {"fit": "`velodrome.fit`", "explicit": "the explicit loop", "raw_again": "the raw loop again"}
    rows = [["", "added to a step, microseconds"]]
    rows += [[label, f"{results['added_us'][name]['median']:.1f}"] for name, label in names.items()]
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


TABLES: Mapping[str, Callable[[Record], str]] = {
    "tutorial_loop": tutorial_loop,
    "overhead": overhead,
    "peers": peers,
    "recipes_accuracy": recipes_accuracy,
    "startup": startup,
    "saving": saving,
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
            body = "Not measured yet: run `make bench`."
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
