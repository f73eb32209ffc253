"""The same job in each trainer's own idiom: the quickstart's network on FashionMNIST, an evaluation after every epoch.

Every function gets the same tensors, first weights, SGD, batch sizes and order, and does what its trainer's documentation
shows for tensors. Nobody writes files or draws a bar; everybody records training loss, validation loss and accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import trainers  # before Keras: tells it its backend
import velodrome as vd
from fresh import Outcome, flat_weights
from models import mlp
from velodrome.step.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LR = 0.001


@dataclass(frozen=True, kw_only=True)
class TensorJob:
    """Data in memory, and how to train on them."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    epochs: int
    batch_size: int = 64
    eval_batch_size: int = 1000  # the same for all: small ones would cost the others more than us
    hidden: int = 512

    def make_model(self) -> nn.Sequential:
        """Return the quickstart's network, always with the same first weights."""
        torch.manual_seed(0)
        return mlp(self.hidden)

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the DataLoaders that documentation shows for tensors."""
        return (
            DataLoader(TensorDataset(*self.train), batch_size=self.batch_size),
            DataLoader(TensorDataset(*self.val), batch_size=self.eval_batch_size),
        )

    @property
    def num_steps(self) -> int:
        """Return the updates of the whole job."""
        return self.epochs * -(-len(self.train[0]) // self.batch_size)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR)


def floor(job: TensorJob, *, keep_freed: bool = False) -> Outcome:
    """The bare step of the eager engine, on one ready batch that stays in the cache, as often as the job has steps.

    No data are read and nothing is evaluated or recorded: less than this no loop of single eager steps can do.
    `notes` has the evaluation's floor, one ready batch as often as there are evaluation batches.

    Args:
        job: says how many steps.
        keep_freed: keep the memory that a step frees, as a run of ours does.
    """
    if keep_freed:
        keep_freed_memory()
    model = job.make_model()
    optimizer = sgd(model)
    inputs, targets = (each[: job.batch_size].clone() for each in job.train)
    start = perf_counter()
    for _ in range(job.num_steps):
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = perf_counter() - start
    inputs = job.val[0][: job.eval_batch_size].clone()
    start = perf_counter()
    with torch.inference_mode():
        for _ in range(job.epochs * -(-len(job.val[0]) // job.eval_batch_size)):
            model(inputs)
    return Outcome(seconds=seconds, notes={"evaluation_s": perf_counter() - start})


def raw(job: TensorJob) -> Outcome:
    """The quickstart's loop over a DataLoader of these tensors."""
    model = job.make_model()
    losses, accuracies = [], []
    start = perf_counter()
    train, val = job.loaders()
    optimizer = sgd(model)
    for _ in range(job.epochs):
        model.train()
        for batch, (inputs, targets) in enumerate(train):
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if batch % 100 == 0:
                loss.item()
        model.eval()
        total, correct = 0.0, 0
        with torch.no_grad():
            for inputs, targets in val:
                outputs = model(inputs)
                total += F.cross_entropy(outputs, targets).item() * len(inputs)
                correct += (outputs.argmax(1) == targets).sum().item()
        losses.append(total / len(job.val[0]))
        accuracies.append(correct / len(job.val[0]))
    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(model))


def velodrome_fit(job: TensorJob) -> Outcome:
    """One call with the optimizer that all the others have; loss and accuracy on both splits, the loss read every 50 steps."""
    return _fit(job, lambda model: {"optimizer": sgd(model)})


def velodrome_switched(job: TensorJob, **switches: Any) -> Outcome:
    """The same with an optimizer by name, which is fused, and further switches."""
    return _fit(job, lambda model: {"optimizer": "sgd", "lr": LR, **switches})


def _fit(job: TensorJob, arguments: Callable[[nn.Module], dict[str, Any]]) -> Outcome:
    model = job.make_model()
    start = perf_counter()
    result = vd.fit(
        model,
        job.train,
        job.val,
        epochs=job.epochs,
        batch_size=job.batch_size,
        eval_batch_size=job.eval_batch_size,
        shuffle=False,
        loss="cross_entropy",
        metrics=["accuracy"],
        device="cpu",
        progress=False,
        **arguments(model),
    )
    return Outcome.of_fit(result, model, seconds=perf_counter() - start)


def lightning_fit(job: TensorJob) -> Outcome:
    """Lightning's Trainer, a LightningModule and DataLoaders."""
    import lightning
    from lightning.pytorch.callbacks import Callback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.make_model()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, targets = batch
            loss = F.cross_entropy(self.model(inputs), targets)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            inputs, targets = batch
            outputs = self.model(inputs)
            self.log("val_loss", F.cross_entropy(outputs, targets))
            self.log("val_acc", (outputs.argmax(1) == targets).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    class Keep(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                losses.append(float(trainer.callback_metrics["val_loss"]))
                accuracies.append(float(trainer.callback_metrics["val_acc"]))

    losses, accuracies = [], []
    module = Module()
    start = perf_counter()
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Keep()],
    )
    trainer.fit(module, *job.loaders())
    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(module.model))


def accelerate_loop(job: TensorJob) -> Outcome:
    """Accelerate's loop, with `gather_for_metrics` in the evaluation."""
    from accelerate import Accelerator

    model = job.make_model()
    losses, accuracies = [], []
    start = perf_counter()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer, train, val = accelerator.prepare(model, sgd(model), *job.loaders())
    for _ in range(job.epochs):
        prepared.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(prepared(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
        prepared.eval()
        total, correct = 0.0, 0
        for inputs, targets in val:
            with torch.no_grad():
                outputs = prepared(inputs)
            outputs, targets = accelerator.gather_for_metrics((outputs, targets))
            total += F.cross_entropy(outputs, targets).item() * len(outputs)
            correct += (outputs.argmax(1) == targets).sum().item()
        losses.append(total / len(job.val[0]))
        accuracies.append(correct / len(job.val[0]))
    seconds = perf_counter() - start
    weights = flat_weights(accelerator.unwrap_model(prepared))
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=weights)


def ignite_engine(job: TensorJob) -> Outcome:
    """Ignite's supervised trainer and evaluator, with its Accuracy and Loss."""
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss

    model = job.make_model()
    losses, accuracies = [], []
    start = perf_counter()
    train, val = job.loaders()
    trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy, device="cpu")
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    evaluator = create_supervised_evaluator(model, metrics=metrics, device="cpu")

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate() -> None:
        evaluator.run(val)
        losses.append(evaluator.state.metrics["loss"])
        accuracies.append(evaluator.state.metrics["accuracy"])

    trainer.run(train, max_epochs=job.epochs)
    seconds = perf_counter() - start
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(model))


def keras_fit(job: TensorJob) -> Outcome:
    """Keras over torch: `fit` on arrays, which its documentation prefers to loaders."""
    import keras

    layers = keras.layers
    first = [layer for layer in job.make_model() if isinstance(layer, nn.Linear)]
    dense = [layers.Dense(job.hidden, "relu"), layers.Dense(job.hidden, "relu"), layers.Dense(10)]
    model = keras.Sequential([layers.Input(tuple(job.train[0].shape[1:])), layers.Flatten(), *dense])
    for layer, linear in zip(dense, first, strict=True):
        layer.set_weights([linear.weight.detach().T.numpy(), linear.bias.detach().numpy()])
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=LR),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    (x, y), (val_x, val_y) = ((a.numpy(), b.numpy()) for a, b in (job.train, job.val))
    start = perf_counter()
    history = model.fit(
        x,
        y,
        batch_size=job.batch_size,
        epochs=job.epochs,
        shuffle=False,
        validation_data=(val_x, val_y),
        validation_batch_size=job.eval_batch_size,
        verbose=0,
    ).history
    seconds = perf_counter() - start
    parts = [part for layer in dense for part in (torch.as_tensor(_numpy(layer.kernel)).T, _numpy(layer.bias))]
    weights = torch.cat([torch.as_tensor(part).flatten() for part in parts])
    return Outcome(seconds=seconds, losses=history["val_loss"], accuracies=history["val_accuracy"], weights=weights)


def _numpy(tensor: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(tensor)


def skorch_fit(job: TensorJob) -> Outcome:
    """skorch's classifier: `fit` on arrays, with its own validation scores."""
    from skorch import NeuralNetClassifier
    from skorch.dataset import Dataset as SkorchDataset
    from skorch.helper import predefined_split

    net = NeuralNetClassifier(
        job.make_model(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=LR,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        iterator_valid__batch_size=job.eval_batch_size,
        train_split=predefined_split(SkorchDataset(*(each.numpy() for each in job.val))),
        classes=list(range(10)),
        verbose=0,
    )
    net.initialize()
    net.module_.load_state_dict(job.make_model().state_dict())
    start = perf_counter()
    net.partial_fit(*(each.numpy() for each in job.train))
    seconds = perf_counter() - start
    losses, accuracies = ([float(each) for each in net.history[:, key]] for key in ("valid_loss", "valid_acc"))
    return Outcome(seconds=seconds, losses=losses, accuracies=accuracies, weights=flat_weights(net.module_))


def poutyne_fit(job: TensorJob) -> Outcome:
    """Poutyne's Model over DataLoaders."""
    from poutyne import Model

    network = job.make_model()
    model = Model(network, sgd(network), "cross_entropy", batch_metrics=["accuracy"])
    start = perf_counter()
    rows = model.fit_generator(*job.loaders(), epochs=job.epochs, verbose=False)
    seconds = perf_counter() - start
    return Outcome(
        seconds=seconds,
        losses=[float(row["val_loss"]) for row in rows],
        accuracies=[float(row["val_acc"]) / 100 for row in rows],
        weights=flat_weights(network),
    )


class Rows(Dataset[dict[str, Any]]):
    """Tensors as the dicts that the Trainer of transformers wants."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.inputs[index], "labels": self.targets[index]}


def transformers_trainer(job: TensorJob) -> Outcome:
    """The Trainer of transformers, in the data's order, without its clipping and decay."""
    from transformers import Trainer

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.make_model()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(inputs)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    module = Wrapped()
    arguments = trainers.quiet_arguments(
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.eval_batch_size,
        eval_strategy="epoch",
    )
    optimizer = sgd(module)
    trainer = InOrder(
        module,
        arguments,
        train_dataset=Rows(*job.train),
        eval_dataset=Rows(*job.val),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    start = perf_counter()
    trainer.train()
    seconds = perf_counter() - start
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    return Outcome(
        seconds=seconds,
        losses=[row["eval_loss"] for row in rows],
        accuracies=[row["eval_accuracy"] for row in rows],
        weights=flat_weights(module.model),
    )


# Name of the trainer -> its arm.
PEERS: dict[str, Callable[[TensorJob], Outcome]] = {
    "Ignite": ignite_engine,
    "Poutyne": poutyne_fit,
    "Accelerate": accelerate_loop,
    "skorch": skorch_fit,
    "Lightning": lightning_fit,
    "transformers Trainer": transformers_trainer,
    "Keras": keras_fit,
}
