"""Single steps by each trainer, in its own idiom: one linear layer, ready batches, plain SGD.

Every function gets the same list of batches, makes the same first weights and optimizer, and returns the seconds of the whole call and
the trained weight. Importing this file imports torch and no trainer, ours neither: `peers_startup.py` times the imports.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

import trainers  # before Keras: tells it its backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Batches = list[tuple[Tensor, Tensor]]
    Arm = Callable[[Batches], tuple[float, Tensor]]

LR = 0.01


def new_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, 4)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR)


def raw_loop(batches: Batches) -> tuple[float, Tensor]:
    """Train with nothing around the step."""
    model = new_model()
    optimizer = sgd(model)
    start = perf_counter()
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return perf_counter() - start, model.weight.detach()


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


def velodrome_fit(batches: Batches, **more: Any) -> tuple[float, Tensor]:
    """One call; the loss is averaged, read and recorded every 50 steps, as it is by default."""
    import velodrome as vd

    model = new_model()
    arguments = {"epochs": 1, "loss": "cross_entropy", "device": "cpu", "progress": False}
    arguments |= {} if "optimizer" in more else {"optimizer": sgd(model)}
    start = perf_counter()
    vd.fit(model, batches, **(arguments | more))
    return perf_counter() - start, model.weight.detach()


def velodrome_fit_metrics(batches: Batches, **more: Any) -> tuple[float, Tensor]:
    """One call, with the accuracy of every batch."""
    return velodrome_fit(batches, metrics=["accuracy"], **more)


def lightning_trainer(batches: Batches) -> tuple[float, Tensor]:
    """Lightning's Trainer; the loss is logged by `self.log` as its documentation shows."""
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    return _lightning(batches, logs=True, **quiet)


def lightning_barebones(batches: Batches) -> tuple[float, Tensor]:
    """Lightning's own setting for measuring its overhead: nothing is logged."""
    return _lightning(batches, logs=False, barebones=True)


def _lightning(batches: Batches, *, logs: bool, **settings: Any) -> tuple[float, Tensor]:
    import lightning

    class Bare(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    class Logging(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    module = Logging() if logs else Bare()
    start = perf_counter()
    lightning.Trainer(max_epochs=1, accelerator="cpu", **settings).fit(module, loader(batches))
    return perf_counter() - start, module.model.weight.detach()


def accelerate_loop(batches: Batches) -> tuple[float, Tensor]:
    """Accelerate's loop: nothing is logged by it."""
    from accelerate import Accelerator

    model = new_model()
    optimizer = sgd(model)
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
    optimizer = sgd(model)
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
    optimizer = sgd(network)
    model = Model(network, optimizer, "cross_entropy", batch_metrics=["accuracy"])
    start = perf_counter()
    model.fit_generator(batches, epochs=1, verbose=False)
    return perf_counter() - start, network.weight.detach()


def transformers_trainer(batches: Batches) -> tuple[float, Tensor]:
    """The Trainer of transformers, over single samples' loader replaced by the ready batches."""
    from transformers import Trainer

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
    arguments = trainers.quiet_arguments(
        num_train_epochs=1,
        per_device_train_batch_size=8,
    )
    optimizer = sgd(module)
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


# Name of the arm -> itself; of which trainer it is says `trainers.trainer_of`.
PEERS: dict[str, Arm] = {
    "Ignite": ignite_engine,
    "Poutyne": poutyne_fit,
    "Accelerate": accelerate_loop,
    "skorch": skorch_fit,
    "Lightning, barebones": lightning_barebones,
    "Lightning": lightning_trainer,
    "transformers Trainer": transformers_trainer,
    "Keras": keras_fit,
}
