"""Claims, for one H200: a captured step of the main job takes at most 75 microseconds, one of the CNN 130; each is at least 4 times as
fast as the eager loop over resident data and 30 times as fast as the tutorial's loop; nothing waits for the device between log points.

One command for a CUDA machine, `make bench-gpu`: it needs torch and this repository, no pydantic, no network, no installation, and
less than ten minutes. Each arm runs in a process of its own on the same 60,000 pictures (those that come along, repeated, unless
--data-root has all of FashionMNIST), same first weights, batches of 64 in order. A step's time is the median epoch's after the first,
divided by its steps; the first epoch, with capture and warm-up, is told apart. The tutorial's is its only epoch, after 50 steps of
another model. Each claim is compared with what was measured, printed and recorded as met or not.

    tutorial        one sample at a time through a DataLoader, batches moved to the device, `.item()` where it prints
    raw             tensors on the device, sliced; a fused optimizer; no waits
    eager, fp32     `fit` on the same tensors; then tf32 and bf16
    captured, ...   `fit` with engine="captured"

Waits are counted by `torch.cuda.set_sync_debug_mode`, for an epoch and for one of twice the steps: what grows is a wait a step. The
control is the raw loop with `.item()` in it. At the end `tests/gpu` run.

    python benchmarks/gpu.py --rounds 2
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import io
import subprocess
import sys
import warnings
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import velodrome as vd
from fresh import Outcome, add_child_options, flat_weights, is_child, run_fresh, serve
from harness import (
    ROOT,
    add_common_options,
    at_least_one,
    environment,
    interleave,
    opening,
    ratios,
    summary,
    write_record,
)
from velodrome.data.sources import load_fashion_mnist

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    Data = tuple[Tensor, Tensor]

BATCH_SIZE = 64
TRAIN_ROWS = 60_000
GOALS_US = {"mlp": 75.0, "cnn": 130.0}
TIMES_EAGER, TIMES_TUTORIAL = 4.0, 30.0
LARGEST_LOSS_DIFFERENCE = 1e-3
WARM_UP_STEPS = 50
PRECISIONS = ("fp32", "tf32", "bf16")
WHOLE_LIMIT_S = 570
"""what the tests may take besides, so that the whole ends within ten minutes"""


def make_model(name: str) -> nn.Sequential:
    """Return the network with its first weights: the quickstart's, or two convolutions of 32 and 64 channels."""
    torch.manual_seed(0)
    if name == "mlp":
        sizes = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
        return nn.Sequential(nn.Flatten(), *sizes)
    convolutions = [
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


def make_optimizer(name: str, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    """Return plain SGD for the MLP, Adam for the CNN."""
    kind = torch.optim.SGD if name == "mlp" else torch.optim.Adam
    return kind(model.parameters(), lr=1e-3, **more)


def load_data(root: Path | None, rows: int) -> tuple[Data, Data]:
    """Return training and validation pictures on the CPU: all of them from `root`, or those that come along, repeated."""
    if root is not None:
        data = load_fashion_mnist(root, source="local", say=lambda line: None)
    else:
        data = load_fashion_mnist(source="embedded", say=lambda line: None)
    times = -(-rows // len(data.train[0]))
    inputs, targets = (each.repeat(times, *[1] * (each.ndim - 1))[:rows] for each in data.train)
    return (inputs.contiguous(), targets.contiguous()), data.val


class Pictures(Dataset[tuple["Tensor", "Tensor"]]):
    """Pictures of bytes, turned into numbers one at a time: what torchvision's ToTensor does, without its way through PIL."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs.mul(255).round().to(torch.uint8), targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index].float().div(255), self.targets[index]


def wait_for(device: torch.device) -> None:
    """Return when the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock(vd.Callback):
    """Notes when each epoch ends, the device having done everything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times_s: list[float] = []

    def on_fit_start(self, trainer: vd.Trainer) -> None:
        """Note the beginning."""
        self.note()

    def on_epoch_end(self, trainer: vd.Trainer, row: dict[str, Any]) -> None:
        """Note an end."""
        self.note()

    def note(self) -> None:
        """Wait, then write the time down."""
        wait_for(self.device)
        self.times_s.append(perf_counter())


def tutorial(name: str, train: Data, val: Data, device: torch.device, epochs: int) -> Outcome:
    """Train as the quickstart does on a device; one epoch, for it is slow, after some steps of another model that are not timed."""
    loss_fn = nn.CrossEntropyLoss()
    loader = DataLoader(Pictures(*train), batch_size=BATCH_SIZE)
    clock = Clock(device)
    # The other arms leave out their first epoch, in which a device is set up: so do these steps here.
    tutorial_epoch(name, islice(loader, WARM_UP_STEPS), loss_fn, device)
    clock.note()
    model = tutorial_epoch(name, loader, loss_fn, device)
    clock.note()
    return finished(clock, model, len(loader), losses=[], val=val, device=device)


def tutorial_epoch(name: str, batches: Iterable[Any], loss_fn: nn.Module, device: torch.device) -> nn.Module:
    """Train a new model on these batches, and return it."""
    model = make_model(name).to(device)
    optimizer = make_optimizer(name, model)
    for batch, (X, y) in enumerate(batches):
        X, y = X.to(device), y.to(device)
        loss = loss_fn(model(X), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch % 100 == 0:
            loss.item()
    return model


def raw(name: str, train: Data, val: Data, device: torch.device, epochs: int, *, reads_losses: bool = False) -> Outcome:
    """Train on tensors that are on the device, with a fused optimizer and no wait but at the end of an epoch."""
    model = make_model(name).to(device)
    optimizer = make_optimizer(name, model, fused=True)
    inputs, targets = (each.to(device) for each in train)
    clock, losses = Clock(device), []
    clock.note()
    for _ in range(epochs):
        kept = []  # a list rather than a sum: adding up would cost the raw loop two more kernels a step
        for begin in range(0, len(inputs), BATCH_SIZE):
            X, y = inputs[begin : begin + BATCH_SIZE], targets[begin : begin + BATCH_SIZE]
            loss = F.cross_entropy(model(X), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            kept.append(loss.detach())
            if reads_losses:
                loss.item()
        sizes = torch.tensor([min(BATCH_SIZE, len(inputs) - begin) for begin in range(0, len(inputs), BATCH_SIZE)])
        losses.append(float((torch.stack(kept).double().cpu() * sizes).sum() / len(inputs)))
        clock.note()
    return finished(clock, model, -(-len(inputs) // BATCH_SIZE), losses=losses, val=val, device=device)


def velodrome_fit(
    name: str, train: Data, val: Data, device: torch.device, epochs: int, *, engine: str, precision: str
) -> Outcome:
    """Train by `fit`; the loss is read once an epoch."""
    model = make_model(name).to(device)
    clock = Clock(device)
    arguments: dict[str, Any] = {"engine": engine} if has_engines() else {}
    trainer = vd.Trainer(
        model,
        "sgd" if name == "mlp" else "adam",
        lr=1e-3,
        loss="cross_entropy",
        metrics=["accuracy"],
        precision=precision,
        device=device,
        callbacks=[clock],
        log_every="1000000 steps",
        progress=False,
        **arguments,
    )
    data = tuple(each.to(device) for each in train)
    with contextlib.redirect_stderr(io.StringIO()) as warned:
        result = trainer.fit(data, batch_size=BATCH_SIZE, shuffle=False, epochs=epochs)
    losses = [float(row["train/loss"]) for row in result.history]
    said = [*str(trainer.explain()).splitlines(), *warned.getvalue().splitlines()]  # a fall-back to eager is a warning
    lines = [line.strip() for line in said if line.strip().startswith("engine:")]
    steps = -(-len(train[0]) // BATCH_SIZE)
    return finished(clock, model, steps, losses=losses, val=val, device=device, engine_says=lines)


def finished(
    clock: Clock,
    model: nn.Module,
    num_steps: int,
    *,
    losses: list[float],
    val: Data,
    device: torch.device,
    **notes: Any,
) -> Outcome:
    """Return what an arm did: times of its epochs, losses, accuracy, and memory of the device."""
    on_cuda = device.type == "cuda"
    epochs_s = [b - a for a, b in zip(clock.times_s, clock.times_s[1:], strict=False)]
    memory = {
        "peak_allocated_mb": torch.cuda.max_memory_allocated(device) / 1e6 if on_cuda else 0.0,
        "peak_reserved_mb": torch.cuda.max_memory_reserved(device) / 1e6 if on_cuda else 0.0,
    }
    model.eval()
    with torch.inference_mode():
        inputs, targets = (each.to(device) for each in val)
        accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    return Outcome(
        seconds=sum(epochs_s),
        losses=losses,
        accuracies=[accuracy],
        weights=flat_weights(model),
        notes={"step_us": 1e6 * median(epochs_s[1:] or epochs_s) / num_steps, "first_epoch_s": epochs_s[0], **memory, **notes},
    )  # fmt: skip


def has_engines() -> bool:
    """Return whether this Velodrome has more than one engine."""
    return "engine" in inspect.signature(vd.Trainer).parameters


def arm_names(device: torch.device) -> list[str]:
    """Return the arms that this machine and this Velodrome can run."""
    precisions = PRECISIONS if device.type == "cuda" else ("fp32", "bf16")
    captured = device.type == "cuda" and has_engines()
    of_fit = [f"{engine}, {each}" for engine in ("eager", *(["captured"] if captured else [])) for each in precisions]
    return ["tutorial", "raw", "raw again", *of_fit]


def run_arm(arm: str, *, model: str, train: Data, val: Data, device: torch.device, epochs: int) -> Outcome:
    """Run one arm by its name."""
    if arm == "tutorial":
        return tutorial(model, train, val, device, epochs)
    if arm.startswith("raw"):
        return raw(model, train, val, device, epochs)
    if arm == "waits":
        return count_waits(model, train, device)
    engine, _, precision = arm.partition(", ")
    return velodrome_fit(model, train, val, device, epochs, engine=engine, precision=precision)


def count_waits(name: str, train: Data, device: torch.device) -> Outcome:
    """Return how many waits are added by twice as many steps, for `fit` and for a loop with a wait a step."""
    few, many = (tuple(each[: BATCH_SIZE * count] for each in train) for count in (20, 40))
    loops = {
        f"{engine}, fp32": partial(velodrome_fit, engine=engine, precision="fp32")
        for engine in ("eager", *(["captured"] if has_engines() else []))
    } | {"control: .item() a step": partial(raw, reads_losses=True)}
    found = {}
    for label, loop in loops.items():
        counts = [waits_of(partial(loop, name, data, data, device, 2)) for data in (few, few, many)]
        found[label] = {
            "of_40_steps": counts[1],
            "of_80_steps": counts[2],
            "added": counts[2] - counts[1],
        }  # first: warm-up
    return Outcome(seconds=0.0, notes={"waits": found})


def waits_of(loop: partial[Outcome]) -> int:
    """Return how often a loop waited for the device, as torch sees it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def main() -> None:
    """Time the arms, compare what they learned, count waits, run the tests, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__),
        epilog="Takes about 6 minutes on an H200, tests included.",
    )
    parser.add_argument("--device", default="cuda", help="cpu only shows that everything runs (%(default)s)")
    parser.add_argument("--data-root", type=Path, default=None, help="where FashionMNIST's IDX files are, if anywhere")
    parser.add_argument("--models", nargs="+", choices=list(GOALS_US), default=list(GOALS_US))
    parser.add_argument("--model", choices=list(GOALS_US), default="mlp", help="of --arm")
    parser.add_argument("--rows", type=at_least_one, default=TRAIN_ROWS, help="training pictures (%(default)s)")
    parser.add_argument("--epochs", type=at_least_one, default=6, help="of every arm but the tutorial's (%(default)s)")
    parser.add_argument("--no-tests", action="store_true", help="leave tests/gpu out")
    add_common_options(parser, rounds=2)
    add_child_options(parser, threads=torch.get_num_threads())
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no CUDA device on this machine, so nothing was measured. On a machine with one, run: make bench-gpu. "
            "Here: make bench. To see that this script runs: python benchmarks/gpu.py --device cpu --rows 640 --rounds 1 --records records",
            file=sys.stderr,
        )
        sys.exit(2)
    if is_child(options):
        train, val = load_data(options.data_root, options.rows)
        run = partial(run_arm, options.arm, model=options.model, train=train, val=val, device=device)
        serve(partial(run, epochs=options.epochs), options)
        return

    started = perf_counter()
    facts = environment(
        rounds=options.rounds,
        epochs=options.epochs,
        rows=options.rows,
        threads=options.threads,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        cuda=torch.version.cuda or "",
        engines=has_engines(),
    )
    results: dict[str, Any] = {}
    for model in options.models:
        results[model] = measure(model, options, device)
        show(model, results[model])
    fell_back = [
        f"{model}, {name}: {line}"
        for model, found in results.items()
        for name, each in found["arms"].items()
        for line in each["engine_says"]
        if "instead of captured" in line
    ]
    record = {"environment": facts, "results": results, "tests": "left out", "fell_back": fell_back}
    record["seconds"] = perf_counter() - started
    write_record("gpu", record, options.records)  # whatever becomes of the tests
    if device.type == "cuda" and not options.no_tests:
        record["tests"] = run_tests(limit_s=max(60.0, WHOLE_LIMIT_S - (perf_counter() - started)))
        record["seconds"] = perf_counter() - started
        write_record("gpu", record, options.records)
    tests = str(record["tests"])
    if fell_back:
        sys.exit("Not captured, so these rows are eager: " + "; ".join(fell_back))
    if not tests.startswith(("left out", "passed")):
        sys.exit(f"tests/gpu: {tests}")


def measure(model: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Run every arm of one network and return what they come to."""
    arguments = [
        "--device",
        options.device,
        "--model",
        model,
        "--rows",
        str(options.rows),
        "--epochs",
        str(options.epochs),
    ]
    arguments += ["--data-root", str(options.data_root)] if options.data_root else []
    run = partial(run_fresh, __file__, arguments, threads=options.threads)
    names = arm_names(device)
    wanted = [name for name in names if not options.only or name in options.only or name == "raw"]
    runs = interleave({name: partial(run, arm=name) for name in wanted}, rounds=options.rounds)
    found = {"arms": compare(runs), "goal_us": GOALS_US[model], "left_out": sorted(set(names) - set(wanted))}
    if device.type == "cuda":
        found |= run(arm="waits").notes
        if not found["waits"]["control: .item() a step"]["added"]:
            sys.exit("The control, a loop that waits every step, shows no waits: this torch does not report them.")
    found["goals"] = judge(found)
    return found


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare what was measured with what is claimed of a captured step in fp32: {"goal", "found", "met"}, None where it was not measured."""
    captured = results["arms"].get("captured, fp32", {})
    waits = results.get("waits", {}).get("captured, fp32", {})

    def median_of(name: str) -> float | None:
        return captured[name]["median"] if name in captured else None

    step_us, differs, added = median_of("step_us"), captured.get("loss_difference_from_eager"), waits.get("added")
    eager, tutorials = median_of("times_eager"), median_of("times_tutorial")
    goals = [
        (f"a step takes at most {results['goal_us']:.0f} us", step_us, lambda it: it <= results["goal_us"]),
        (f"at least {TIMES_EAGER:g} times the eager loop on resident data", eager, lambda it: it >= TIMES_EAGER),
        (f"at least {TIMES_TUTORIAL:g} times the tutorial's loop", tutorials, lambda it: it >= TIMES_TUTORIAL),
        (
            f"losses differ from eager ones by at most {LARGEST_LOSS_DIFFERENCE:g}",
            differs,
            lambda it: it <= LARGEST_LOSS_DIFFERENCE,
        ),
        ("no step waits for the device", added, lambda it: it <= 0),
    ]
    return [
        {"goal": goal, "found": found, "met": None if found is None else bool(is_met(found))}
        for goal, found, is_met in goals
    ]


def compare(runs: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return each arm's step, its speed against raw loop and tutorial within a round, its memory, and how far its losses are away."""
    steps_us = {name: [run.notes["step_us"] for run in arm] for name, arm in runs.items()}
    base = runs["raw"][-1]
    found = {}
    for name, arm in runs.items():
        last = arm[-1]
        entry = {
            "step_us": summary(steps_us[name]),
            "times_raw": summary(ratios(steps_us["raw"], steps_us[name])),
            "first_epoch_s": summary([run.notes["first_epoch_s"] for run in arm]),
            "accuracy": last.accuracies[-1],
            "peak_allocated_mb": last.notes["peak_allocated_mb"],
            "peak_reserved_mb": last.notes["peak_reserved_mb"],
            "engine_says": last.notes.get("engine_says", []),
        }
        rival = name.replace("captured", "eager")
        if rival != name and rival in runs:
            entry["times_eager"] = summary(ratios(steps_us[rival], steps_us[name]))
            if last.losses:
                pairs = zip(last.losses, runs[rival][-1].losses, strict=True)
                entry["loss_difference_from_eager"] = max(abs(a - b) for a, b in pairs)
        if "tutorial" in runs:
            entry["times_tutorial"] = summary(ratios(steps_us["tutorial"], steps_us[name]))
        if last.losses:
            entry["losses"] = last.losses
            entry["largest_loss_difference"] = max(abs(a - b) for a, b in zip(last.losses, base.losses, strict=True))
        found[name] = entry
    return found


def show(model: str, results: dict[str, Any]) -> None:
    """Print one network's rows."""
    print(f"{model}:")
    for name, each in results["arms"].items():
        tutorial = (
            f", {each['times_tutorial']['median']:.1f} times the tutorial's loop" if "times_tutorial" in each else ""
        )
        print(
            f"  {name:<16} {each['step_us']['median']:8.1f} us a step, {each['times_raw']['median']:.2f} times the raw loop{tutorial}; "
            f"accuracy {each['accuracy']:.2%}, losses differ by {each.get('largest_loss_difference', float('nan')):.2g}, "
            f"peak {each['peak_allocated_mb']:.0f} MB"
        )
        for line in each["engine_says"]:
            print(f"    {line}")
    for name, each in results.get("waits", {}).items():
        print(f"  waits of {name}: {each['added']} more in 40 more steps")
    for each in results["goals"]:
        verdict = {None: "not measured", True: "met", False: "not met"}[each["met"]]
        print(
            f"  goal, captured, fp32: {each['goal']}: {verdict}"
            + (f" ({each['found']:.3g})" if each["found"] is not None else "")
        )


def run_tests(*, limit_s: float) -> str:
    """Run tests/gpu and return "passed" with pytest's last line, or what was wrong."""
    if importlib.util.find_spec("pytest") is None:
        return "not run: pytest is not installed. pip install pytest, then make bench-gpu."
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s. Alone: {' '.join(command[1:])}"
    print(done.stdout[-3000:])
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    return f"passed: {last}" if done.returncode == 0 else f"failed: {last}"


if __name__ == "__main__":
    main()
