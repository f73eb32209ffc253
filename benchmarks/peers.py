"""Claim: of the trainers for PyTorch, `velodrome.fit` adds least to a step; it adds less than nothing to the raw loop.

The model is so small that the step itself is cheap (one linear layer, batch of 8), the batches exist already, every trainer is
given the same list of them in the way its own documentation shows, the same first weights, the same SGD, one thread. Nothing is
written to disk and no bar is drawn, by anybody. In turns: the raw loop, the raw loop again (the noise floor), and each trainer.
Beside the times: how far the final weights lie from those of the raw loop.

The trainers live in an environment of their own (`make bench-peers` makes it). A trainer that is not installed is left out, and the
record says so.

    python benchmarks/peers.py --steps 2000 --rounds 7
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import warnings
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn
from torch.nn import functional as F

import harness
import velodrome as vd
from harness import add_common_options, environment, interleave, summary, write_record
from overhead import raw_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Batches = list[tuple[Tensor, Tensor]]
    Arm = Callable[[Batches], tuple[float, Tensor]]

LR = 0.01
PACKAGES = {
    "lightning": "lightning",
    "accelerate": "accelerate",
    "ignite": "pytorch-ignite",
    "keras": "keras",
    "skorch": "skorch",
    "poutyne": "poutyne",
    "transformers": "transformers",
}


def new_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, 4)


class Ready(torch.utils.data.Dataset):
    """Ready batches as a map-style data set whose items are whole batches."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index]


def loader(batches: Batches) -> torch.utils.data.DataLoader:
    """Return what a trainer that insists on a DataLoader is given: one that hands the batches through."""
    return torch.utils.data.DataLoader(Ready(batches), batch_size=None, shuffle=False)


def raw_loader_loop(batches: Batches) -> tuple[float, Tensor]:
    """Train with nothing around the step, over the DataLoader that hands the batches through."""
    return raw_loop(loader(batches))  # type: ignore[arg-type]


def velodrome_fit(batches: Batches) -> tuple[float, Tensor]:
    """Defaults but for progress: the loss is averaged, read and recorded every 50 steps; metrics are on."""
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start = perf_counter()
    vd.fit(
        model,
        batches,
        epochs=1,
        optimizer=optimizer,
        loss="cross_entropy",
        metrics=["accuracy"],
        device="cpu",
        progress=False,
    )
    return perf_counter() - start, model.weight.detach()


def lightning_trainer(batches: Batches, **settings: Any) -> tuple[float, Tensor]:
    """Lightning's Trainer; the loss is logged by `self.log` as its documentation shows."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, targets = batch
            loss = F.cross_entropy(self.model(inputs), targets)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR)

    module = Module()
    start = perf_counter()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        **settings,
    )
    trainer.fit(module, loader(batches))
    return perf_counter() - start, module.model.weight.detach()


def lightning_barebones(batches: Batches) -> tuple[float, Tensor]:
    """Lightning's own setting for measuring its overhead: nothing is logged."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR)

    module = Module()
    start = perf_counter()
    lightning.Trainer(max_epochs=1, accelerator="cpu", barebones=True).fit(module, loader(batches))
    return perf_counter() - start, module.model.weight.detach()


def accelerate_loop(batches: Batches) -> tuple[float, Tensor]:
    """Accelerate's loop: nothing is logged by it."""
    from accelerate import Accelerator

    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start = perf_counter()
    accelerator = Accelerator(cpu=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, loader(batches))
    model.train()
    for inputs, targets in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
    return perf_counter() - start, accelerator.unwrap_model(model).weight.detach()


def ignite_engine(batches: Batches) -> tuple[float, Tensor]:
    """Ignite's supervised trainer, whose default output is `loss.item()`."""
    from ignite.engine import create_supervised_trainer

    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start = perf_counter()
    create_supervised_trainer(model, optimizer, F.cross_entropy, device="cpu").run(batches, max_epochs=1)
    return perf_counter() - start, model.weight.detach()


def keras_fit(batches: Batches) -> tuple[float, Tensor]:
    """Keras over torch, with the accuracy."""
    import keras

    first = new_model()
    model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(4)])
    model.layers[0].set_weights([first.weight.detach().T.numpy(), first.bias.detach().numpy()])
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=LR),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = perf_counter()
    model.fit(loader(batches), epochs=1, verbose=0)
    seconds = perf_counter() - start
    return seconds, torch.as_tensor(keras.ops.convert_to_numpy(model.layers[0].kernel)).T.clone()


def skorch_fit(batches: Batches) -> tuple[float, Tensor]:
    """skorch's net with its batches handed through, no validation split, no printing."""
    from skorch import NeuralNetClassifier

    class Passing(torch.utils.data.DataLoader):
        def __init__(self, dataset: Any, **_: Any) -> None:
            super().__init__(Ready(batches), batch_size=None)

    first = new_model()
    net = NeuralNetClassifier(
        first,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=LR,
        max_epochs=1,
        train_split=None,
        iterator_train=Passing,
        verbose=0,
        classes=[0, 1, 2, 3],
    )
    net.initialize()
    net.module_.load_state_dict(new_model().state_dict())
    start = perf_counter()
    net.partial_fit(torch.zeros(1, 16), torch.zeros(1, dtype=torch.long))
    return perf_counter() - start, net.module_.weight.detach()


def poutyne_fit(batches: Batches) -> tuple[float, Tensor]:
    """Poutyne's Model with the accuracy."""
    from poutyne import Model

    network = new_model()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    model = Model(network, optimizer, "cross_entropy", batch_metrics=["accuracy"])
    start = perf_counter()
    model.fit_generator(batches, epochs=1, verbose=False)
    return perf_counter() - start, network.weight.detach()


def transformers_trainer(batches: Batches) -> tuple[float, Tensor]:
    """The Trainer of transformers, over single samples' loader replaced by the ready batches."""
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(inputs)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class OfReadyBatches(Trainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader:
            items = [{"inputs": inputs, "labels": labels} for inputs, labels in batches]
            return torch.utils.data.DataLoader(Ready(items), batch_size=None)  # type: ignore[arg-type]

    module = Wrapped()
    arguments = TrainingArguments(
        output_dir=os.devnull + "-unused",
        num_train_epochs=1,
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        max_grad_norm=0.0,
        logging_steps=50,
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = OfReadyBatches(
        module,
        arguments,
        train_dataset=Ready(batches),  # type: ignore[arg-type]
        optimizers=(optimizer, constant),
    )
    start = perf_counter()
    trainer.train()
    return perf_counter() - start, module.model.weight.detach()


PEERS: dict[str, tuple[str, Arm]] = {
    "Ignite": ("ignite", ignite_engine),
    "Poutyne": ("poutyne", poutyne_fit),
    "Accelerate": ("accelerate", accelerate_loop),
    "skorch": ("skorch", skorch_fit),
    "Lightning, barebones": ("lightning", lightning_barebones),
    "Lightning": ("lightning", lightning_trainer),
    "transformers Trainer": ("transformers", transformers_trainer),
    "Keras": ("keras", keras_fit),
}


def quietly(arm: partial[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """Run an arm with its prints kept in memory."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return arm()


def main() -> None:
    """Time the arms, check that all trained the same weights, write the record."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Takes about five minutes with every trainer, on two idle cores.",
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", default="", help="peers, separated by commas; all that are installed when left out")
    add_common_options(parser, rounds=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(options.steps)
    ]
    wanted = {name.strip() for name in options.only.split(",") if name.strip()} or set(PEERS)
    installed = {
        name: arm for name, (module, arm) in PEERS.items() if importlib.util.find_spec(module) and name in wanted
    }
    arms_by_name: dict[str, Arm] = {
        "raw": raw_loop,
        "raw again": raw_loop,
        "raw over a loader": raw_loader_loop,
        "velodrome.fit": velodrome_fit,
        **installed,
    }
    arms = {name: partial(quietly, partial(arm, batches)) for name, arm in arms_by_name.items()}
    interleave(arms, rounds=1, say=False)  # warm-up
    harness.PACKAGES = (*harness.PACKAGES, *PACKAGES.values())
    facts = environment(threads=1, steps=options.steps, rounds=options.rounds)
    runs = interleave(arms, rounds=options.rounds, say=False)

    times = {name: [seconds for seconds, _ in arm] for name, arm in runs.items()}
    reference = runs["raw"][0][1]
    microseconds = 1e6 / options.steps
    added = {
        name: summary([(b - a) * microseconds for a, b in zip(times["raw"], times[name], strict=True)])
        for name in arms_by_name
        if name != "raw"
    }
    difference = {name: float((arm[-1][1] - reference).abs().max()) for name, arm in runs.items()}
    results = {
        "raw_step_us": summary([seconds * microseconds for seconds in times["raw"]]),
        "added_us": added,
        "largest_weight_difference": difference,
        "left_out": sorted(set(PEERS) - set(installed)),
    }
    print(f"raw step {results['raw_step_us']['median']:.1f} us")
    for name, each in sorted(added.items(), key=lambda item: item[1]["median"]):
        print(f"{name:<24} {each['median']:+9.1f} us a step; weights differ by {difference[name]:.2g}")
    write_record("peers", {"environment": facts, "results": results, "raw_s": times}, options.records)


if __name__ == "__main__":
    main()
