"""Claim: FashionMNIST by `velodrome.fit` takes at most 1/2.7 of the time of the PyTorch quickstart's loop.

Same data set objects (torchvision's FashionMNIST with ToTensor), same PyTorch DataLoaders (batch 64, in
order), same initial weights, same optimizer (SGD, lr 1e-3), same prints, same number of threads, each arm in a
process of its own. Timed from making the data sets to the last evaluation, so reading the files and preparing
the data count for all; starting the process and importing torch, the compiler included that it imports
when the first of its optimizers is made, count for none. In turns: the tutorial's loop,
the same again (the noise floor), `fit`, the built-in recipe (its own way to the same images, an optimizer by name, which is
fused), and the recipe with switches set by hand (`--switches`, bf16 when left out). bf16 changes the last digits, so there
accuracy is compared and not bits. Beside the speed: accuracy and test loss of every epoch, and how far the final weights lie apart.

    python benchmarks/tutorial_loop.py --data-root data --rounds 3 --epochs 5 --threads 2
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader

import velodrome as vd
from fresh import CHILDREN, COMPILER, Outcome, add_child_options, flat_weights, is_child, run_fresh, serve
from harness import add_common_options, at_least_one, environment, interleave, opening, ratios, summary, write_record
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe
from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.utils.data import Dataset

LIMIT, SWITCHED_LIMIT = 2.7, 3.5
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class NeuralNetwork(nn.Module):
    """The quickstart's network."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_relu_stack(self.flatten(x))


def open_datasets(root: Path) -> tuple[Dataset, Dataset]:
    torchvision = import_torchvision()
    to_tensor = torchvision.transforms.ToTensor()
    fashion_mnist = torchvision.datasets.FashionMNIST
    return fashion_mnist(root, train=True, transform=to_tensor), fashion_mnist(root, train=False, transform=to_tensor)


def tutorial_loop(root: Path, epochs: int) -> Outcome:
    """The quickstart, line by line (PyTorch, "Quickstart", pytorch.org/tutorials/beginner/basics)."""
    model = new_model()
    test_losses: list[float] = []
    accuracies: list[float] = []
    start = perf_counter()

    training_data, test_data = open_datasets(root)
    train_dataloader = DataLoader(training_data, batch_size=64)
    test_dataloader = DataLoader(test_data, batch_size=64)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    for t in range(epochs):
        print(f"Epoch {t + 1}\n-------------------------------")
        size = len(train_dataloader.dataset)  # pyright: ignore[reportArgumentType]
        model.train()
        for batch, (X, y) in enumerate(train_dataloader):
            pred = model(X)
            loss = loss_fn(pred, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if batch % 100 == 0:
                loss, current = loss.item(), (batch + 1) * len(X)
                print(f"loss: {loss:>7f}  [{current:>5d}/{size:>5d}]")

        size = len(test_dataloader.dataset)  # pyright: ignore[reportArgumentType]
        num_batches = len(test_dataloader)
        model.eval()
        test_loss, correct, exact_loss = 0.0, 0.0, 0.0
        with torch.no_grad():
            for X, y in test_dataloader:
                pred = model(X)
                batch_loss = loss_fn(pred, y).item()
                test_loss += batch_loss
                exact_loss += batch_loss * len(X)  # the one line that is ours: the last batch is short
                correct += (pred.argmax(1) == y).type(torch.float).sum().item()
        test_loss /= num_batches
        correct /= size
        print(f"Test Error: \n Accuracy: {(100 * correct):>0.1f}%, Avg loss: {test_loss:>8f} \n")
        test_losses.append(exact_loss / size)
        accuracies.append(correct)

    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=test_losses, accuracies=accuracies, weights=flat_weights(model))


def velodrome_fit(root: Path, epochs: int) -> Outcome:
    """The same in one call."""
    model = new_model()
    start = perf_counter()

    training_data, test_data = open_datasets(root)
    result = vd.fit(
        model,
        DataLoader(training_data, batch_size=64),
        DataLoader(test_data, batch_size=64),
        loss="cross_entropy",
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        epochs=epochs,
        metrics=["accuracy"],
        device="cpu",
        log_every="100 steps",
    )

    seconds = perf_counter() - start
    return Outcome.of_fit(result, model, seconds=seconds)


def velodrome_recipe(root: Path, epochs: int, switches: Sequence[str] = ()) -> Outcome:
    """The built-in recipe: the same images from the source's own tensors, evaluated in batches of 1000."""
    overrides = [f'data.root="{root}"', "data.source=local", f"train.epochs={epochs}", "train.device=cpu", *switches]
    start = perf_counter()
    ready = build(load_recipe("fashion-mnist-tutorial", overrides), say=lambda line: None)
    with torch.no_grad():  # the first weights of the other arms, whose seed is the recipe's
        for own, first in zip(ready.model.parameters(), new_model().parameters(), strict=True):
            assert torch.equal(own, first)
    result = ready.make_trainer().fit(ready.train, ready.val, **ready.fit_arguments)
    seconds = perf_counter() - start
    return Outcome.of_fit(result, ready.model, seconds=seconds)


def new_model() -> NeuralNetwork:
    torch.manual_seed(0)
    return NeuralNetwork()


def lay_out_for_torchvision(found_in: Path, root: Path) -> None:
    """Unpack the four IDX files, found anywhere below `found_in`, to where torchvision looks for them."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        candidates = [path for end in ("", ".gz") for path in sorted(found_in.rglob(name + end))]
        # data/ may hold the digits beside the clothes, under the same file names.
        candidates = [path for path in candidates if "fashion" in str(path.resolve()).lower()]
        if not candidates:
            sys.exit(
                f"There is no FashionMNIST file {name} or {name}.gz below {found_in}. "
                "Name the folder that has the four IDX files with --data-root."
            )
        source = candidates[0]
        with (
            (gzip.open if source.suffix == ".gz" else open)(source, "rb") as packed,
            (raw / name).open("wb") as out,
        ):
            shutil.copyfileobj(packed, out)


ARMS: dict[str, Callable[..., Outcome]] = {
    "tutorial": tutorial_loop,
    "tutorial_again": tutorial_loop,
    "velodrome": velodrome_fit,
    "recipe": velodrome_recipe,
    "switches": velodrome_recipe,
}


def main() -> None:
    """Time the arms, compare what they learned, write the record."""
    parser = argparse.ArgumentParser(description=opening(__doc__), epilog="Takes about 7 minutes on two idle cores.")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the IDX files are (%(default)s)")
    add_common_options(parser, rounds=3)
    parser.add_argument("--epochs", type=at_least_one, default=5)
    parser.add_argument(
        "--switches",
        nargs="+",
        default=["train.precision=bf16"],
        metavar="KEY=VALUE",
        help="of the recipe (%(default)s)",
    )
    add_child_options(parser, threads=torch.get_num_threads())
    options = parser.parse_args()
    if is_child(options):  # --data-root is laid out for torchvision by now
        import_torchvision()
        _ = vd.Trainer  # `import velodrome` alone imports little
        switches = {"switches": options.switches} if options.arm == "switches" else {}
        loop = ARMS[options.arm]
        imports = () if loop is velodrome_recipe else COMPILER
        serve(partial(loop, options.data_root, options.epochs, **switches), options, imports=imports)
        return

    with tempfile.TemporaryDirectory(prefix="velodrome-bench-") as folder:
        lay_out_for_torchvision(options.data_root, Path(folder))
        arguments = ["--data-root", folder, "--epochs", str(options.epochs), "--switches", *options.switches]
        names = ["tutorial", *options.only] if options.only else list(ARMS)
        arms = {name: partial(run_fresh, __file__, arguments, arm=name, threads=options.threads) for name in names}
        facts = environment(
            threads=options.threads,
            epochs=options.epochs,
            rounds=options.rounds,
            recipe_switches=options.switches,
            children=CHILDREN,
        )
        runs = interleave(arms, rounds=options.rounds)

    if options.only:  # a look at some arms, no record
        for name, times in seconds_of(runs).items():
            print(f"{name:<15} {summary(times)}")
        return
    record = {"environment": facts, "results": compare(runs), "raw_s": seconds_of(runs)}
    for line in sentences(record["results"]):
        print(line)
    write_record("tutorial_loop", record, options.records)


def seconds_of(runs: dict[str, list[Outcome]]) -> dict[str, list[float]]:
    return {name: [run.seconds for run in arm] for name, arm in runs.items()}


def compare(runs: dict[str, list[Outcome]]) -> dict[str, object]:
    """Return speed as ratios within a round, and the differences in what was learned."""
    times = seconds_of(runs)
    ours, recipe, theirs = runs["velodrome"][-1], runs["recipe"][-1], runs["tutorial"][-1]
    switched = runs["switches"][-1]
    assert ours.weights is not None
    assert recipe.weights is not None
    assert theirs.weights is not None
    return {
        "tutorial_s": summary(times["tutorial"]),
        "velodrome_s": summary(times["velodrome"]),
        "speedup": summary(ratios(times["tutorial"], times["velodrome"])),
        "recipe_s": summary(times["recipe"]),
        "recipe_speedup": summary(ratios(times["tutorial"], times["recipe"])),
        "recipe_test_loss": recipe.losses,
        "recipe_accuracy": recipe.accuracies,
        "recipe_weights_equal": torch.equal(recipe.weights, theirs.weights),
        "switches_s": summary(times["switches"]),
        "switches_speedup": summary(ratios(times["tutorial"], times["switches"])),
        "switches_test_loss": switched.losses,
        "switches_accuracy": switched.accuracies,
        "noise": summary(ratios(times["tutorial"], times["tutorial_again"])),
        "tutorial_test_loss": theirs.losses,
        "velodrome_test_loss": ours.losses,
        "tutorial_accuracy": theirs.accuracies,
        "velodrome_accuracy": ours.accuracies,
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
        "largest_weight_difference": float((ours.weights - theirs.weights).abs().max()),
        "weights_equal": torch.equal(ours.weights, theirs.weights),
    }


def sentences(results: dict) -> list[str]:
    """Return the result in words."""
    return [
        f"tutorial loop   {results['tutorial_s']['median']:.2f} s",
        f"velodrome.fit   {results['velodrome_s']['median']:.2f} s",
        f"speed-up        {results['speedup']['median']:.2f} (limit {LIMIT}; "
        f"{results['speedup']['min']:.2f} to {results['speedup']['max']:.2f})",
        f"the recipe      {results['recipe_s']['median']:.2f} s, {results['recipe_speedup']['median']:.2f} times as fast "
        f"({results['recipe_speedup']['min']:.2f} to {results['recipe_speedup']['max']:.2f}), weights equal: {results['recipe_weights_equal']}",
        f"with switches   {results['switches_s']['median']:.2f} s, {results['switches_speedup']['median']:.2f} times as fast "
        f"(limit {SWITCHED_LIMIT}; {results['switches_speedup']['min']:.2f} to {results['switches_speedup']['max']:.2f}), "
        f"accuracy {results['switches_accuracy'][-1]:.4f}",
        f"noise floor     {results['noise']['median']:.2f} (the tutorial loop against itself)",
        f"accuracy        {results['tutorial_accuracy'][-1]:.4f} and {results['velodrome_accuracy'][-1]:.4f}",
        f"test loss       differs by at most {results['largest_loss_difference']:.2g}, "
        f"weights by {results['largest_weight_difference']:.2g}",
    ]


if __name__ == "__main__":
    main()
