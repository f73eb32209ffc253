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
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)
Record = dict[str, Any]


def tutorial_loop(record: Record) -> str:
    """Return the table of the tutorial loop against `fit` and the recipe, with what was learned and the spread of each speed."""
    results, facts = record["results"], record["environment"]
    switches_of_recipe = ", ".join(f"`{each}`" for each in facts["recipe_switches"])
    names = {  # in the record -> label, key of its seconds, key of its speed
        "tutorial": ("the quickstart's loop", "tutorial_s", ""),
        "velodrome": ("`velodrome.fit`", "velodrome_s", "speedup"),
        "recipe": ("the recipe `fashion-mnist-tutorial`", "recipe_s", "recipe_speedup"),
        "switches": (f"the recipe with {switches_of_recipe}", "switches_s", "switches_speedup"),
    }
    rows = [["", "seconds", "speed", "fastest run, seconds", "test accuracy", "test loss"]]
    for name, (label, seconds, speed) in names.items():
        rows.append(
            [
                label,
                f"{results[seconds]['median']:.1f}",
                f"**{results[speed]['median']:.2f}** ({spread(results[speed])})" if speed else "1",
                f"{results[seconds]['min']:.1f}",
                f"{results[f'{name}_accuracy'][-1]:.2%}",
                f"{results[f'{name}_test_loss'][-1]:.6f}",
            ]
        )
    fastest = {name: results[seconds]["min"] for name, (_, seconds, _) in names.items()}
    weights = (
        "final weights are equal bit for bit"
        if results["weights_equal"] and results["recipe_weights_equal"]
        else f"final weights differ by at most {results['largest_weight_difference']:.1g}"
    )
    note = (
        f"FashionMNIST, MLP 784-512-512-10, SGD, {facts['epochs']} epochs: preparing the data, training and evaluation together. Medians "
        f"of {results['speedup']['n']} interleaved rounds, in brackets the slowest and the fastest round; the quickstart's loop against itself "
        f"gives {results['noise']['median']:.2f} ({spread(results['noise'])}). Of the fastest runs, which were disturbed least, `fit` is "
        f"{fastest['tutorial'] / fastest['velodrome']:.2f} times as fast as that loop, the recipe {fastest['tutorial'] / fastest['recipe']:.2f} times and "
        f"with the switch {fastest['tutorial'] / fastest['switches']:.2f} times. The {weights}, but for the last row, whose switch was set by hand."
    )
    return with_note(rows, note, facts)


def overhead(record: Record) -> str:
    """Return the table of what a step costs more than in the raw loop."""
    results, facts = record["results"], record["environment"]
    names = {
        "fit": "`velodrome.fit`",
        "fit_metrics": "`velodrome.fit` with a metric",
        "fit_recorded": "`velodrome.fit` with a metric and a run directory: journal, CSV, a checkpoint at the end",
        "fit_default": "`velodrome.fit` with a metric and a run directory, default settings: TensorBoard, curves, the report and progress, too",
        "explicit": "the explicit loop",
        "raw_again": "the raw loop again",
    }
    added = results["added_us"]
    rows = [["", "added to a step, microseconds"]]
    rows += [[label, f"{added[name]['median']:+.1f}"] for name, label in names.items() if name in added]
    default = ""
    if "fit_default" in results:
        each, once = results["fit_default"]["each_step_us"]["median"], results["fit_default"]["once_a_run_ms"]["median"]
        default = f" Of the default settings, {each:+.1f} microseconds belong to each step, and {once:.0f} ms to the run, whatever its length."
    note = (
        f"On ready batches, against a raw step of {results['raw_step_us']['median']:.0f} microseconds; the whole call is timed, its start and end "
        f"divided among {facts['steps']:,} steps.{default} Medians of {facts['rounds']} interleaved rounds."
    )
    return with_note(rows, note, facts)


def peers(record: Record) -> str:
    """Return the table of what other trainers add to a step."""
    results, facts = record["results"], record["environment"]
    rows = [["", "version", "added to a step, microseconds", "largest difference of a weight"]]
    for name, each in by_median(results["added_us"]):
        weight = results["largest_weight_difference"][name]
        rows.append([label_of(name), version_of(name, facts), f"{each['median']:+,.0f}", f"{weight:.1g}"])
    note = (
        f"Ready batches, one linear layer, against a raw step of {results['raw_step_us']['median']:.0f} microseconds; "
        f"{facts['steps']:,} steps, medians of {facts['rounds']} interleaved rounds. Trainers that insist on a DataLoader are given "
        f'one that hands the batches through, which by itself costs what "raw over a loader" says.'
    )
    return with_note(rows, note, facts)


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
    return with_note(rows, f"Medians of {facts['rounds']} interleaved rounds.", facts)


def data_paths(record: Record) -> str:
    """Return the table of ways of data, each compared with the first of its group."""
    facts = record["environment"]
    rows = [["", "microseconds a batch", "speed", "batches"]]
    for group, results in record["results"].items():
        for name, each in results["batch_us"].items():
            is_first = name not in results["speedup"]
            rows.append(
                [
                    f"{group}: {name}",
                    f"{each['median']:,.0f}",
                    "1" if is_first else f"{results['speedup'][name]['median']:.2f}",
                    "" if is_first else "the same bits" if results["equal_bits"][name] else "other ones",
                ]
            )
    note = (
        f"{facts['samples']:,} pictures of 28 x 28 (a tenth of them from the slow dataset, which works half a millisecond on each) in batches of "
        f"{facts['batch_size']}, without a model. Speed is against the first of each group. Medians of {facts['rounds']} interleaved rounds."
    )
    return with_note(rows, note, facts)


def step_switches(record: Record) -> str:
    """Return the table of a step's switches on a CPU."""
    facts, chip = record["environment"], record["chip"]
    rows = [["", "microseconds a step", "of a step with a fused optimizer", "loss after all steps"]]
    for job, arms in record["results"].items():
        for name, each in arms.items():
            part = each["of fused"]
            rows.append(
                [f"{job}: {name}", f"{each['us']['median']:,.0f}", f"{part['median']:.2f} ({spread(part)})", f"{each['loss']:.4f}"]
            )  # fmt: skip
    able = ", ".join(name for name, has in chip.items() if has is True) or "none"
    note = (
        f"Batches of 64, processor time, medians of {facts['rounds']} interleaved rounds of {facts['steps']} steps, in brackets the smallest and the "
        f"largest. Instructions of the chip: {able}. Memory that a step frees is {'kept' if facts['freed_memory_kept'] else 'given back'}."
    )
    return with_note(rows, note, facts)


def freed_memory(record: Record) -> str:
    """Return the table of steps whose freed memory is kept."""
    facts = record["environment"]
    rows = [["", "microseconds a step", "of the first", "page faults a step", "peak memory, MB", "weights"]]
    for job, arms in record["results"].items():
        for name, each in arms.items():
            rows.append(
                [
                    f"{job}: {name}",
                    f"{each['step_us']['median']:,.0f}",
                    f"{each['part']['median']:.2f} ({spread(each['part'])})",
                    f"{each['page_faults']['median']:,.0f}",
                    f"{each['peak_mb']['median']:,.0f}",
                    "the same bits" if each["weights_equal"] else "other ones",
                ]
            )
    note = (
        f"The bare loop on one ready batch of 64 pictures, fused SGD. Medians of {facts['rounds']} interleaved rounds, in brackets the smallest and "
        "the largest, each arm in a process of its own."
    )
    return with_note(rows, note, facts)


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
    note = f"The last epoch on validation data, means over {counts} seeds. {data}."
    return with_note(rows, note, facts)


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
        "All arms load the same weights."
    )
    return with_note(rows, note, facts)


def end_to_end(record: Record) -> str:
    """Return the table of the tutorial's job by every trainer."""
    results, facts = record["results"], record["environment"]
    head = ["", "version", "seconds", "times `fit`", "fastest run, seconds", "test accuracy"]
    rows = [[*head, "largest difference of a weight", "peak memory, MB"]]
    for name, each in by_median(results["arms"], "seconds"):
        rows.append(
            [
                label_of(name),
                version_of(name, facts),
                f"{each['seconds']['median']:.1f}",
                f"{each['times_ours']['median']:.2f}",
                f"{each['seconds']['min']:.1f}",
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
        f"{against}`fit` takes {results['times_floor']['median']:.2f} times what the bare steps alone take on one ready batch, and "
        f"{results['times_kept_floor']['median']:.2f} times what they take where freed memory is kept, as `fit` does; "
        f"the loop over a loader against itself gives {results['noise']['median']:.2f}. {fastest_runs(results['arms'])}Switches: {switches(facts)}. "
        f"Medians of {facts['rounds']} interleaved rounds, each arm in a process of its own."
    )
    return with_note(rows, note, facts)


def fastest_runs(arms: dict[str, Any]) -> str:
    """Return a sentence that compares the fastest run of each arm: what else runs on a machine makes runs slower and never faster."""
    fastest = {name: each["seconds"]["min"] for name, each in arms.items()}
    ours = fastest["velodrome.fit"]
    others = [seconds / ours for name, seconds in fastest.items() if not name.startswith(("velodrome", "raw", "floor"))]
    if not others:
        return ""
    kept = fastest["floor: bare steps, freed memory kept"]
    return (
        f"Of the fastest runs, which were disturbed least, the best of the others takes {min(others):.2f} times as long as `fit`, their median "
        f"{median(others):.2f} times, and `fit` {ours / kept:.2f} times as long as the bare steps with freed memory kept. "
    )


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
        f"one. Switches: {switches(facts)}. Medians of {facts['rounds']} interleaved rounds, each arm in a process of its own."
    )
    return with_note(rows, note, facts)


def memory(record: Record) -> str:
    """Return the table of resident memory."""
    facts = record["environment"]
    rows = [["", "peak, MB", "added by training, MB"]]
    for name, each in by_median(record["results"]["arms"], "peak_mb"):
        added = each["added_mb"]
        spread_mb = f"{added['median']:,.0f} ({added['min']:,.0f} to {added['max']:,.0f})"
        rows.append([label_of(name), f"{each['peak_mb']['median']:,.0f}", spread_mb])
    note = (
        "One epoch of FashionMNIST, MLP 784-512-512-10. Peak: the whole process, libraries and data included; added: beyond what was "
        f"resident when the tensors were handed over. Medians of {facts['rounds']} runs."
    )
    return with_note(rows, note, facts)


def peers_startup(record: Record) -> str:
    """Return the table of times from the start of Python to the end of the first update."""
    results, facts = record["results"], record["environment"]
    rows = [["", "version", "seconds", "more than the raw loop"]]
    for name, each in by_median(results["seconds"]):
        added = results["added_s"].get(name)
        more = f"{added['median']:+.2f}" if added else ""
        rows.append([label_of(name), version_of(name, facts), f"{each['median']:.2f}", more])
    return with_note(rows, f"Medians of {facts['rounds']} interleaved rounds of whole processes.", facts)


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
    return with_note(rows, "Mean ± standard deviation over seeds; steps and epochs are fixed beforehand.", facts)


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


def by_median(arms: Mapping[str, Any], key: str = "") -> list[tuple[str, Any]]:
    """Return names and entries in the order of their medians, or of those of one of their numbers."""
    return sorted(arms.items(), key=lambda item: (item[1][key] if key else item[1])["median"])


def label_of(name: str) -> str:
    """Return an arm's name; ours stands out."""
    return re.sub(r"^([^,]*)", r"**`\1`**", name) if name.startswith("velodrome") else name


def version_of(name: str, facts: Record) -> str:
    """Return the version of the trainer of an arm, or nothing where it has none of its own."""
    package = name.partition(",")[0].split()[0].lower()
    return facts["versions"].get({"ignite": "pytorch-ignite"}.get(package, package), "")


def spread(numbers: Record) -> str:
    """Return the smallest and the largest of some numbers."""
    return f"{numbers['min']:.2f} to {numbers['max']:.2f}"


def tuning(record: Record) -> str:
    """Return the table of what tune found against combinations by hand."""
    facts = record["environment"]
    head = [
        "recipe", "`tune` chose", "faster than the recipe", "best by hand", "share of its speed", "took", "validation of the recipe", "of the tuned one",
    ]  # fmt: skip
    rows = [head]
    for name, each in record["results"].items():
        tune, best, accuracy = each["tune"], each["best_by_hand"], each["accuracy"]
        is_worth_it = (tune["verified"] or {}).get("faster") and tune["verified"]["as_good"]
        learned = ["", ""]
        if accuracy is not None:
            show = (lambda value: f"{value:.4f}") if accuracy["key"] == "val/loss" else (lambda value: f"{value:.2%}")
            epochs = f" after {accuracy['epochs']} epoch{'s' * (accuracy['epochs'] != 1)}"
            learned = [show(accuracy["mean"]["recipe"]) + epochs, show(accuracy["mean"]["tuned"])]
        rows.append(
            [
                f"`{name}`",
                fields(tune["best"]) if is_worth_it else "the recipe as it is",
                f"{tune['verified']['speed_up']:.2f} times" if is_worth_it else "",
                "" if best is None else fields(best["fields"]),
                f"**{int(100 * each['share_of_best'])}%**",
                f"{tune['seconds']:.0f} s of {tune['budget_s']:.0f} s",
                *learned,
            ]
        )
    seeds = max(
        (len(each["accuracy"]["runs"]["recipe"]) for each in record["results"].values() if each["accuracy"]), default=0
    )
    noise = ", ".join(f"{each['noise']:.1%}" for each in record["results"].values())
    note = (
        "Share: speed of the tuned recipe's whole run, start-up and compilation included, by that of the best combination that was set by hand, which was measured anew "
        "after it had been chosen. Two "
        f"equal configurations lie {noise} apart. Validation: means over {seeds} seeds, accuracy or loss. {conditions(facts)}"
    )
    return f"{table(rows)}\n\n{note}"


def fields(changes: Record) -> str:
    """Return fields of a recipe as the command line takes them."""
    return ", ".join(
        f"`{name}={str(value).lower() if isinstance(value, bool) else value}`" for name, value in changes.items()
    )


def switches(facts: Record) -> str:
    """Return a record's switches as they are given to `fit`."""
    return ", ".join(f"`{name}={value!r}`" for name, value in facts["switches"].items()) or "none"


TABLES: Mapping[str, Callable[[Record], str]] = {
    "tutorial_loop": tutorial_loop,
    "overhead": overhead,
    "peers": peers,
    "recipes_accuracy": recipes_accuracy,
    "startup": startup,
    "data_paths": data_paths,
    "step_switches": step_switches,
    "freed_memory": freed_memory,
    "saving": saving,
    "end_to_end": end_to_end,
    "cnn": recipe_job,
    "char_gpt": recipe_job,
    "memory": memory,
    "tuning": tuning,
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


def with_note(rows: list[list[str]], note: str, facts: Record) -> str:
    """Return a table and what it is about, with machine, versions and date."""
    return f"{table(rows)}\n\n{note} {conditions(facts)}"


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
