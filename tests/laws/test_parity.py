"""Law 1: with every switch off, `fit` gives the weights and buffers of the plain PyTorch loop over the same order, bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import velodrome
from velodrome import Callback

SEED = 7
NUM, BATCH, EPOCHS = 21, 4, 2  # a last batch of one sample is too short for BatchNorm: 21 = 5 * 4 + 1, see NUM_NORM
NUM_NORM = 22


def plain_loop(model, optimizer, train, epochs, *, val=None, loss_function=F.cross_entropy):
    """Train as the PyTorch tutorial does; `train` gives the batches of an epoch when asked for."""
    for epoch in range(epochs):
        model.train()
        for x, y in train(epoch):
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
        if val is not None:
            model.eval()
            with torch.no_grad():
                for x, y in val:
                    loss_function(model(x), y)


def mlp(dropout=False, norm=False):
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU()]
    if norm:
        layers.insert(2, nn.BatchNorm1d(16))
    if dropout:
        layers.append(nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Linear(16, 3))


def cnn(dropout=False, norm=False):
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
    if dropout:
        layers.insert(2, nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Linear(36, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def make_data(num):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, 1, 8, 8, generator=generator), torch.randint(0, 3, (num,), generator=generator)


def make_models(build, **switches):
    torch.manual_seed(11)
    model = build(**switches)
    return model, copy.deepcopy(model)


def velodrome_batches(data, seed=SEED):
    loader = velodrome.DataLoader(data, BATCH, shuffle=True, seed=seed)

    def of_epoch(epoch):
        loader.set_epoch(epoch)
        return loader

    return of_epoch


def assert_same_bits(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{name} differs by {(a - b).abs().max():g}"


def differs(one, other):
    return any(
        not torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


SWITCHES = [{}, {"dropout": True}, {"norm": True}, {"dropout": True, "norm": True}]


@pytest.mark.parametrize("switches", SWITCHES, ids=["plain", "dropout", "norm", "dropout and norm"])
@pytest.mark.parametrize("make_optimizer", [sgd, adam])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_fit_equals_the_plain_loop_over_a_shuffled_order(build, make_optimizer, switches):
    data = make_data(NUM_NORM if "norm" in switches else NUM)
    model, plain = make_models(build, **switches)
    velodrome.fit(
        model, data, data, optimizer=make_optimizer(model.parameters()), loss="cross_entropy", seed=SEED,
        batch_size=BATCH, epochs=EPOCHS, device="cpu", progress=False,
    )  # fmt: skip
    torch.manual_seed(SEED)
    plain_loop(plain, make_optimizer(plain.parameters()), velodrome_batches(data), EPOCHS)
    assert_same_bits(model, plain)


@pytest.mark.parametrize("switches", SWITCHES, ids=["plain", "dropout", "norm", "dropout and norm"])
@pytest.mark.parametrize("make_optimizer", [sgd, adam])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_fit_over_a_pytorch_loader_equals_the_plain_loop_over_that_loader(build, make_optimizer, switches):
    data = make_data(NUM_NORM if "norm" in switches else NUM)
    loader = DataLoader(TensorDataset(*data), BATCH, shuffle=False)
    model, plain = make_models(build, **switches)
    torch.manual_seed(SEED)
    velodrome.fit(
        model, loader, optimizer=make_optimizer(model.parameters()), loss=nn.CrossEntropyLoss(),
        epochs=EPOCHS, device="cpu", progress=False,
    )  # fmt: skip
    torch.manual_seed(SEED)
    plain_loop(plain, make_optimizer(plain.parameters()), lambda epoch: loader, EPOCHS)
    assert_same_bits(model, plain)


def test_validation_over_a_pytorch_loader_draws_what_the_plain_loop_draws():
    data = make_data(NUM)
    train, val = DataLoader(TensorDataset(*data), BATCH), DataLoader(TensorDataset(*data), 7)
    model, plain = make_models(mlp, dropout=True)
    torch.manual_seed(SEED)
    velodrome.fit(
        model,
        train,
        val,
        optimizer=sgd(model.parameters()),
        loss="cross_entropy",
        epochs=3,
        device="cpu",
        progress=False,
    )
    drawn_next = torch.rand(3)
    torch.manual_seed(SEED)
    plain_loop(plain, sgd(plain.parameters()), lambda epoch: train, 3, val=val)
    assert_same_bits(model, plain)
    assert torch.equal(torch.rand(3), drawn_next)


@pytest.mark.parametrize(
    ("name", "arguments", "make_plain"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "fused": False}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
        ("adam", {"fused": False}, lambda p: torch.optim.Adam(p, lr=0.01)),
        ("adamw", {"fused": False, "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        ("adagrad", {"fused": False}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
        ("rmsprop", {}, lambda p: torch.optim.RMSprop(p, lr=0.01)),
    ],
)  # fmt: skip
def test_named_optimizers_with_fused_off_equal_the_classes(name, arguments, make_plain):
    data = make_data(NUM)
    model, plain = make_models(mlp)
    velodrome.fit(
        model, data, optimizer=name, lr=0.01, optimizer_args=arguments, loss="cross_entropy", seed=SEED,
        batch_size=BATCH, epochs=EPOCHS, device="cpu", progress=False,
    )  # fmt: skip
    plain_loop(plain, make_plain(plain.parameters()), velodrome_batches(data), EPOCHS)
    assert_same_bits(model, plain)


class Listens(Callback):
    """Evaluates and predicts in the middle of training."""

    def on_step_end(self, trainer):
        trainer.evaluate(make_data(5), batch_size=2)

    def on_epoch_end(self, trainer, row):
        trainer.predict(make_data(5)[0], batch_size=2)


def _train_mean(output, target):
    return (output.argmax(1) == target).float()


@pytest.mark.parametrize(
    "extras",
    [
        {"metrics": ["accuracy", "top2"]},
        {"metrics": {"mine": _train_mean}},
        {"callbacks": [Listens()]},
        {"log_every": "1 step"},
        {"progress": True},
        {"val": True},
    ],
    ids=lambda extras: next(iter(extras)),
)
def test_what_only_watches_changes_no_bit(extras, capsys):
    extras = dict(extras)
    data = make_data(NUM_NORM)
    val = data if extras.pop("val", False) else None
    model, other = make_models(cnn, dropout=True, norm=True)
    common = {"loss": "cross_entropy", "seed": SEED, "batch_size": BATCH, "epochs": EPOCHS, "device": "cpu"}
    velodrome.fit(model, data, optimizer=adam(model.parameters()), progress=False, **common)
    velodrome.fit(other, data, val, optimizer=adam(other.parameters()), **{"progress": False, **common, **extras})
    assert_same_bits(model, other)


@pytest.mark.parametrize("change", ["seed", "lr", "order"])
def test_negative_control_another_seed_lr_or_order_gives_other_weights(change):
    data = make_data(NUM)
    model, plain = make_models(mlp)
    velodrome.fit(
        model, data, optimizer=sgd(model.parameters()), loss="cross_entropy", seed=SEED,
        batch_size=BATCH, epochs=EPOCHS, device="cpu", progress=False,
    )  # fmt: skip
    optimizer = sgd(plain.parameters())
    batches = velodrome_batches(data, seed=SEED + (change == "seed"))
    if change == "lr":
        optimizer.param_groups[0]["lr"] *= 1.001
    if change == "order":
        same_each_epoch = batches
        batches = lambda epoch: same_each_epoch(0)  # noqa: E731
    plain_loop(plain, optimizer, batches, EPOCHS)
    assert differs(model, plain)


@pytest.mark.parametrize("steps", [1, 4, 6, 7, 12])
def test_step_budget_gives_the_weights_of_the_plain_loop_at_that_step(steps):
    data = make_data(NUM)  # 6 batches an epoch
    model, plain = make_models(mlp)
    velodrome.fit(
        model, data, data, optimizer=adam(model.parameters()), loss="cross_entropy", seed=SEED,
        batch_size=BATCH, steps=steps, device="cpu", progress=False,
    )  # fmt: skip
    batches = velodrome_batches(data)
    order = [batch for epoch in range(2) for batch in list(batches(epoch))]
    plain_loop(plain, adam(plain.parameters()), lambda epoch: order[:steps], 1)
    assert_same_bits(model, plain)


def test_run_directory_changes_no_bit(tmp_path):
    data = make_data(NUM_NORM)
    model, other = make_models(cnn, dropout=True, norm=True)
    common = {
        "loss": "cross_entropy",
        "seed": SEED,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "device": "cpu",
        "progress": False,
    }
    velodrome.fit(model, data, data, optimizer=adam(model.parameters()), **common)
    velodrome.fit(
        other,
        data,
        data,
        optimizer=adam(other.parameters()),
        run_dir=tmp_path / "run",
        checkpoint="every 2 steps",
        **common,
    )
    assert_same_bits(model, other)
    assert any((tmp_path / "run" / "checkpoints").iterdir())
