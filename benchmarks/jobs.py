"""The jobs that benchmarks train, and three ways to train each: as a tutorial writes it, well written, and by `fit`.

Every way starts from the same weights and takes the samples in the file's order, so losses can be compared to the last
digit: those of `velodrome_same_loaders` with the tutorial's, those of `velodrome_recipe` with the well-written loop's. (A
DataLoader draws a number from the global generator whenever it is begun, so dropout differs between the two pairs.) Model, data and hyper-parameters are those of the built-in recipe of the same name.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import velodrome as vd
from fresh import Outcome, flat_weights
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe
from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
TUTORIAL_NAMES = {"cnn": "fashion-mnist-cnn", "gpt": "char-gpt"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model's making, the data in both forms, and how long to train."""

    make_model: Callable[[], nn.Module]  # always with the same first weights
    optimizer: str
    lr: float
    optimizer_args: dict[str, Any]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    train_samples: Dataset[Any]  # the same data, one sample at a time, as a tutorial reads them
    val_samples: Dataset[Any]
    batch_size: int
    eval_batch_size: int
    epochs: int
    has_accuracy: bool

    def make_optimizer(self, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
        """Return torch's optimizer with its own defaults."""
        return OPTIMIZERS[self.optimizer](model.parameters(), lr=self.lr, **self.optimizer_args, **more)


class Windows(Dataset[tuple["Tensor", "Tensor"]]):
    """Windows of a text, cut out one at a time, as character-level tutorials write it."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def load_job(name: str, *, data_root: Path, epochs: int, changes: list[str]) -> Job:
    """Return the job of that short name, "cnn" or "gpt".

    Args:
        name: of the job.
        data_root: where the IDX files are; the text comes along with the package.
        epochs: how many to train.
        changes: of the recipe, such as "model.width=32".
    """
    _ = vd.Trainer  # `import velodrome` alone imports little, and importing is not timed
    of_data = [f'data.root="{data_root}"', "data.source=local"] if name == "cnn" else []
    recipe = load_recipe(TUTORIAL_NAMES[name], [*of_data, f"train.epochs={epochs}", "train.device=cpu", *changes])
    ready = build(recipe, say=lambda line: None)
    first = {key: value.clone() for key, value in ready.model.state_dict().items()}

    def make_model() -> nn.Module:
        ready.model.load_state_dict(first)
        torch.manual_seed(0)  # dropout
        return ready.model

    table = ready.recipe.optimizer
    return Job(
        make_model=make_model,
        optimizer=table.name,
        lr=table.lr or 1e-3,
        optimizer_args=table.arguments,
        train=ready.data.train,
        val=ready.data.val,
        train_samples=_samples(name, ready.data.train, data_root, ready.data.preprocessing, train=True),
        val_samples=_samples(name, ready.data.val, data_root, ready.data.preprocessing, train=False),
        batch_size=ready.recipe.train.batch_size,
        eval_batch_size=ready.recipe.train.eval_batch_size,
        epochs=epochs,
        has_accuracy=name == "cnn",
    )


def _samples(name: str, tensors: tuple[Tensor, Tensor], root: Path, preprocessing: Any, *, train: bool) -> Dataset[Any]:
    """Return the data as a tutorial reads them: torchvision's dataset with its transforms, or windows of a text."""
    if name == "gpt":
        return Windows(*tensors)
    from tutorial_loop import lay_out_for_torchvision

    torchvision = import_torchvision()
    mean, deviation = preprocessing["mean"], preprocessing["std"]
    transforms = torchvision.transforms
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (deviation,))])
    with tempfile.TemporaryDirectory(prefix="velodrome-bench-") as folder:  # torchvision reads it all at once
        lay_out_for_torchvision(root, Path(folder))
        return torchvision.datasets.FashionMNIST(folder, train=train, transform=pipeline)


def tutorial_loop(job: Job) -> Outcome:
    """Train as the PyTorch quickstart does: one sample at a time, `.item()` where it prints, evaluation in training's batches."""
    model = job.make_model()
    losses, accuracies = [], []
    start = perf_counter()
    train_dataloader = DataLoader(job.train_samples, batch_size=job.batch_size)
    test_dataloader = DataLoader(job.val_samples, batch_size=job.batch_size)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = job.make_optimizer(model)
    for _ in range(job.epochs):
        model.train()
        for batch, (X, y) in enumerate(train_dataloader):
            pred = model(X)
            loss = loss_fn(pred, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if batch % 100 == 0:
                print(f"loss: {loss.item():>7f}  [{(batch + 1) * len(X):>5d}/{len(job.train[0]):>5d}]")
        model.eval()
        test_loss, correct, count = 0.0, 0.0, 0
        with torch.no_grad():
            for X, y in test_dataloader:
                pred = model(X)
                test_loss += loss_fn(pred, y).item() * len(X)
                correct += (pred.argmax(1) == y).type(torch.float).sum().item()
                count += y.numel()
        losses.append(test_loss / len(job.val[0]))
        accuracies.append(correct / count)
    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(model))


def well_written_loop(job: Job) -> Outcome:
    """Train as one who knows PyTorch does: tensors in memory, a fused optimizer, no waits, evaluation in large batches."""
    model = job.make_model()
    losses, accuracies = [], []
    start = perf_counter()
    optimizer = job.make_optimizer(model, fused=True)
    inputs, targets = job.train
    for _ in range(job.epochs):
        model.train()
        for begin in range(0, len(inputs), job.batch_size):
            loss = F.cross_entropy(
                model(inputs[begin : begin + job.batch_size]), targets[begin : begin + job.batch_size]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss, accuracy = _evaluate(model, job)
        losses.append(loss)
        accuracies.append(accuracy)
    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(model))


def _evaluate(model: nn.Module, job: Job) -> tuple[float, float]:
    """Return mean loss and accuracy, summed on the device and read once."""
    model.eval()
    inputs, targets = job.val
    loss, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for begin in range(0, len(inputs), job.eval_batch_size):
            X, y = inputs[begin : begin + job.eval_batch_size], targets[begin : begin + job.eval_batch_size]
            pred = model(X)
            loss += F.cross_entropy(pred, y).double() * len(X)
            correct += (pred.argmax(1) == y).sum()
    return loss.item() / len(inputs), correct.item() / targets.numel()


def velodrome_same_loaders(job: Job) -> Outcome:
    """`fit`, handed what the tutorial's loop has: the same DataLoaders, the same optimizer. Nothing else is switched on."""
    model = job.make_model()
    start = perf_counter()
    loaders = [DataLoader(data, batch_size=job.batch_size) for data in (job.train_samples, job.val_samples)]
    return _fit(job, model, *loaders, start=start, optimizer=job.make_optimizer(model))


def velodrome_recipe(job: Job, **switches: Any) -> Outcome:
    """`fit` as the recipe calls it: tensors, an optimizer by name (which is fused), evaluation in large batches."""
    named = {"optimizer": job.optimizer, "lr": job.lr, "optimizer_args": job.optimizer_args}
    sizes = {"batch_size": job.batch_size, "eval_batch_size": job.eval_batch_size, "shuffle": False}
    model = job.make_model()
    return _fit(job, model, job.train, job.val, start=perf_counter(), **named, **sizes, **switches)


def _fit(job: Job, model: nn.Module, train: Any, val: Any, *, start: float, **arguments: Any) -> Outcome:
    result = vd.fit(
        model,
        train,
        val,
        epochs=job.epochs,
        loss="cross_entropy",
        metrics=["accuracy"],
        device="cpu",
        progress=False,
        log_every="100 steps",
        **arguments,
    )
    seconds = perf_counter() - start
    return Outcome.of_fit(result, model, seconds=seconds)
