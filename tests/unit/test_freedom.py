"""Batches, models and steps of every shape: each way of saying the same training gives the same weights.

The training: one weight w, the mean of (w x - y)² over eight samples with x = 0..7 and y = 2x, gradient descent.
"""

from __future__ import annotations

import copy
import types
from collections import UserDict, namedtuple
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset

import velodrome as vd
from velodrome.errors import ArgumentError, DataError
from velodrome.testing.torchvision_cpu import import_torchvision

X = torch.arange(8.0, dtype=torch.float64).reshape(8, 1)
Y = 2 * X
SIZES = (3, 3, 2)
"""Samples of the micro-batches of an update: unequal, so that weights matter."""
LR = 0.01
SETTINGS = {"device": "cpu", "progress": False}


def cut(*tensors):
    """Return the tensors in micro-batches."""
    return list(zip(*(tensor.split(SIZES) for tensor in tensors), strict=True))


def plain_loop(updates):
    """Return the weight after each update, and the loss before each: mean x² = (0 + 1 + 4 + ... + 49) / 8 = 17.5."""
    w, weights, losses = 1.0, [], []
    for _ in range(updates):
        losses.append((w - 2) ** 2 * 17.5)
        w -= LR * 2 * (w - 2) * 17.5
        weights.append(w)
    return weights, losses


class OneWeight(nn.Module):
    """w · (the sum of all that it is given); with a target, what `returns` makes of loss and output."""

    def __init__(self, returns=None):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.returns = returns

    def forward(self, *inputs, labels=None, **named):
        if self.returns is not None and labels is None and len(inputs) > 1:
            *inputs, labels = inputs
        output = self.w * sum(inputs) + self.w * sum(named.values())
        if self.returns is None:
            return output
        return self.returns((output - labels).square().mean(), output)


class TakesStructure(nn.Module):
    """Calls the model with what a function takes out of its one input."""

    def __init__(self, take):
        super().__init__()
        self.inner = OneWeight()
        self.take = take

    @property
    def w(self):
        return self.inner.w

    def forward(self, structure):
        return self.inner(self.take(structure))


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


Pair = namedtuple("Pair", ["x", "y"])


class Graph:
    """An object that is no tensor, with a `to` of its own, as packages for graphs have."""

    def __init__(self, nodes):
        self.nodes = nodes

    def to(self, device):
        return Graph(self.nodes.to(device))


class Samples(Dataset):
    """Nested samples with a string among them."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"inputs": {"a": X[i] / 2, "more": [X[i] / 2, f"sample {i}"]}, "y": Y[i]}


class Stream(IterableDataset):
    """An iterable dataset of samples: it has no length."""

    def __iter__(self):
        yield from zip(X, Y, strict=True)


class BatchStream(IterableDataset):
    """An iterable dataset of batches."""

    def __iter__(self):
        yield from cut(X, Y)


def batches_of(sizes):
    """Return a sampler of batches."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def yield_batches():
    yield from cut(X, Y)


def nested_step(model, batch):
    a, (b, names) = batch["inputs"]["a"], batch["inputs"]["more"]
    assert names[0].startswith("sample")
    output = model(a, b)
    return {"loss": (output - batch["y"]).square().mean(), "output": output, "target": batch["y"]}


def sum_over_items(model, batch):
    x, y = batch
    return {"loss": (model(x) - y).square().sum() / len(x), "items": torch.tensor(len(x))}


H = X / 2
WAYS: dict[str, Any] = {
    # what a batch is
    "pairs": (OneWeight(), lambda: cut(X, Y), {"loss": "mse"}),
    "lists": (OneWeight(), lambda: [list(batch) for batch in cut(X, Y)], {"loss": "mse"}),
    "named tuples": (OneWeight(), lambda: [Pair(*batch) for batch in cut(X, Y)], {"loss": "mse"}),
    "three parts": (OneWeight(), lambda: cut(H, H, Y), {"loss": "mse"}),
    "a dict with a target": (OneWeight(), lambda: [{"a": a, "target": y, "b": b} for a, b, y in cut(H, H, Y)], {"loss": "mse"}),
    "a mapping of another kind": (OneWeight(), lambda: [UserDict(a=x, y=y) for x, y in cut(X, Y)], {"loss": "mse"}),
    "a dict in a pair": (OneWeight(), lambda: [({"a": a, "b": b}, y) for a, b, y in cut(H, H, Y)], {"loss": "mse"}),
    "a tuple in a pair": (OneWeight(), lambda: [((a, b), y) for a, b, y in cut(H, H, Y)], {"loss": "mse"}),
    "a dict of targets": (
        OneWeight(), lambda: [(x, {"main": y}) for x, y in cut(X, Y)],
        {"loss": lambda output, target: (output - target["main"]).square().mean()},
    ),
    "an object with a to": (TakesStructure(lambda g: g.nodes), lambda: [(Graph(x), y) for x, y in cut(X, Y)], {"loss": "mse"}),
    "a packed sequence": (
        TakesStructure(lambda pack: pack.data), lambda: [(pack_sequence(list(x[:, None])), y) for x, y in cut(X, Y)], {"loss": "mse"},
    ),
    "nested samples of a dataset": (
        OneWeight(), lambda: vd.DataLoader(Samples(), batch_sampler=batches_of(SIZES)), {"step_fn": nested_step},
    ),
    # where batches come from
    "a generator function": (OneWeight(), lambda: yield_batches, {"loss": "mse"}),
    "an iterable dataset of batches": (OneWeight(), lambda: vd.DataLoader(BatchStream(), batch_size=None), {"loss": "mse"}),
    "an iterable dataset in PyTorch's loader": (OneWeight(), lambda: TorchDataLoader(Stream(), batch_size=3), {"loss": "mse"}),
    # who computes the loss
    "a model that returns its loss": (OneWeight(lambda loss, output: loss), lambda: cut(H, H, Y), {}),
    "a model that returns a dict": (
        OneWeight(lambda loss, output: {"loss": loss, "logits": output}), lambda: [{"a": x, "labels": y} for x, y in cut(X, Y)], {},
    ),
    "a model that returns an object": (OneWeight(Output), lambda: [{"a": x, "labels": y} for x, y in cut(X, Y)], {}),
    "a model that returns its items": (
        OneWeight(lambda loss, output: {"loss": loss, "items": len(output)}), lambda: cut(X, Y), {},
    ),
    "a step that returns the loss": (
        OneWeight(), lambda: cut(X, Y), {"step_fn": lambda model, batch: (model(batch[0]) - batch[1]).square().mean()},
    ),
    "a step that returns items": (OneWeight(), lambda: cut(X, Y), {"step_fn": sum_over_items}),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_weights_of_the_plain_loop(way):
    model, make_data, arguments = WAYS[way]
    trainer = vd.Trainer(copy.deepcopy(model), "sgd", lr=LR, accumulate=3, **arguments, **SETTINGS)
    result = trainer.fit(make_data(), make_data(), epochs=2)
    weights, losses = plain_loop(2)
    assert trainer.progress.steps_done == 2
    assert trainer.progress.samples_done == 16
    assert trainer.model.w.item() == pytest.approx(weights[-1], rel=1e-12)
    assert [row["train/loss"] for row in result.history] == pytest.approx(losses, rel=1e-12)
    assert result.metrics["val/loss"] == pytest.approx((weights[-1] - 2) ** 2 * 17.5, rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_of_ones_own_gives_the_same_bits(way):
    model, make_data, arguments = WAYS[way]
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    vd.fit(ours, make_data(), epochs=2, optimizer="sgd", lr=LR, accumulate=2, **arguments, **SETTINGS)
    trainer = vd.Trainer(theirs, "sgd", lr=LR, accumulate=2, **arguments, **SETTINGS)
    data = make_data()
    for epoch in trainer.epochs(2):
        for batch in epoch.train(data):
            outcome = trainer.forward(batch)
            trainer.step(outcome.loss, items=outcome.items)
    assert trainer.progress.steps_done == 4  # three micro-batches an epoch: a window of two, and a short one
    assert torch.equal(ours.w, theirs.w)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_on_cuda(way):
    model, make_data, arguments = WAYS[way]
    trainer = vd.Trainer(
        copy.deepcopy(model), "sgd", lr=LR, accumulate=3, **arguments, **{**SETTINGS, "device": "cuda"}
    )
    trainer.fit(make_data(), make_data(), epochs=2)
    assert trainer.model.w.item() == pytest.approx(plain_loop(2)[0][-1], rel=1e-9)


def test_metrics_find_the_target_in_the_batch_that_the_model_was_given():
    model = OneWeight(lambda loss, output: {"loss": loss, "logits": output})
    for data in (cut(X, Y), [{"a": x, "labels": y} for x, y in cut(X, Y)]):
        trainer = vd.Trainer(model, None, metrics={"error": lambda output, target: (output - target).abs()}, **SETTINGS)
        assert trainer.evaluate(data) == pytest.approx({"loss": 17.5, "error": 3.5})


# -- data without a length ------------------------------------------------------------------------------------------------


class Counted:
    """Restarts at every `iter`, and keeps count."""

    def __init__(self):
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        yield from cut(X, Y)


@pytest.mark.parametrize(
    ("budget", "epochs", "steps", "micro_batches", "reason"),
    [
        ({"epochs": 2}, 2, 4, 6, vd.StopReason.EPOCHS),  # 3 micro-batches an epoch: windows of 2 and 1
        ({"steps": 5}, 2, 5, 8, vd.StopReason.STEPS),  # 2 + 2 updates, and one of two micro-batches in the third epoch
        ({"steps": 4}, 2, 4, 6, vd.StopReason.STEPS),
        ({"steps": 1, "epochs": 3}, 0, 1, 2, vd.StopReason.STEPS),
    ],
)
def test_budgets_end_data_of_unknown_length(budget, epochs, steps, micro_batches, reason):
    data = Counted()
    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, loss="mse", accumulate=2, **SETTINGS)
    result = trainer.fit(data, **budget)
    progress = trainer.progress
    assert (progress.epochs_done, progress.steps_done, progress.micro_batches_done) == (epochs, steps, micro_batches)
    assert result.stop_reason is reason
    assert data.begun == -(-micro_batches // 3)


def test_endless_data_end_with_the_steps():
    def endless():
        while True:
            yield X, Y

    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, loss="mse", accumulate=3, **SETTINGS)
    result = trainer.fit(endless, steps=4)
    assert (trainer.progress.steps_done, trainer.progress.micro_batches_done) == (4, 12)
    assert trainer.model.w.item() == pytest.approx(plain_loop(4)[0][-1], rel=1e-12)
    assert len(result.history) == 1


def test_streams_in_workers_are_read_once():
    class Sharded(IterableDataset):
        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            yield from list(zip(X, Y, strict=True))[worker.id :: worker.num_workers]

    loader = TorchDataLoader(Sharded(), batch_size=2, num_workers=2)
    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, loss="mse", accumulate=4, **SETTINGS)
    trainer.fit(loader, epochs=1)
    assert trainer.model.w.item() == pytest.approx(plain_loop(1)[0][0], rel=1e-12)


def test_a_length_that_is_wrong_is_told_and_training_goes_on(capsys):
    class Announced(Counted):
        def __len__(self):
            return 5

    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, loss="mse", **SETTINGS)
    trainer.fit(Announced(), epochs=1)
    assert trainer.progress.steps_done == 3
    assert "announced 5 batches; epoch 1 had 3" in capsys.readouterr().err


def test_a_generator_that_is_used_up_is_refused_with_what_to_give():
    with pytest.raises(DataError, match=r"generator given as data is exhausted: epoch 2 has 0 batches"):
        vd.fit(OneWeight(), yield_batches(), epochs=2, loss="mse", optimizer="sgd", lr=LR, **SETTINGS)


# -- sequences of different lengths ---------------------------------------------------------------------------------------


LENGTHS = (1, 4, 2, 1)


class Sequences(Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, i):
        start = sum(LENGTHS[:i])
        return X[start : start + LENGTHS[i], 0]


def pad(samples):
    return pad_sequence(samples, batch_first=True), torch.tensor([len(sample) for sample in samples])


def token_step(model, batch):
    """Return the mean over tokens of (w x - 2x)²; the padding is no token."""
    x, lengths = batch
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    errors = (model(x) - 2 * x).square() * mask
    return {"loss": errors.sum() / mask.sum(), "items": mask.sum()}


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_tokens_weigh_the_same_however_they_are_padded_and_cut(batch_size, accumulate):
    # Eight tokens, 0 to 7, as before: every cut has to give the update and the loss of all of them at once.
    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, step_fn=token_step, accumulate=accumulate, **SETTINGS)
    loader = vd.DataLoader(Sequences(), batch_size=batch_size, collate_fn=pad)
    result = trainer.fit(loader, loader, epochs=2)
    weights, losses = plain_loop(2)
    assert trainer.progress.steps_done == 2
    assert trainer.progress.samples_done == 8  # sequences, twice
    assert trainer.model.w.item() == pytest.approx(weights[-1], rel=1e-12)
    assert [row["train/loss"] for row in result.history] == pytest.approx(losses, rel=1e-12)
    assert result.metrics["val/loss"] == pytest.approx((weights[-1] - 2) ** 2 * 17.5, rel=1e-12)


def test_without_items_padding_would_count():
    def forgets_items(model, batch):
        return token_step(model, batch)["loss"]

    trainer = vd.Trainer(OneWeight(), "sgd", lr=LR, step_fn=forgets_items, accumulate=4, **SETTINGS)
    trainer.fit(vd.DataLoader(Sequences(), batch_size=1, collate_fn=pad), epochs=1)
    assert abs(trainer.model.w.item() - plain_loop(1)[0][0]) > 0.01


# -- frozen layers --------------------------------------------------------------------------------------------------------


def backbone_and_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


INPUTS, TARGETS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.ones(12, 1)


def train_frozen(model, optimizer="adamw", **arguments):
    before = copy.deepcopy(model.state_dict())
    lr = 0.1 if isinstance(optimizer, str) else None
    trainer = vd.Trainer(model, optimizer, lr=lr, loss="mse", **arguments, **SETTINGS)
    trainer.fit((INPUTS, TARGETS), (INPUTS, TARGETS), batch_size=4, epochs=2)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("arguments", [{}, {"accumulate": 2, "clip_norm": 1.0, "precision": "bf16"}])
@pytest.mark.parametrize("norm_is_frozen", [True, False])
def test_frozen_layers_keep_their_weights_and_an_eval_norm_its_statistics(norm_is_frozen, arguments):
    model = backbone_and_head()
    model[:2].requires_grad_(False)
    if norm_is_frozen:
        model[1].eval()
    changed = train_frozen(model, **arguments)
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert changed == {"2.weight", "2.bias"} | (set() if norm_is_frozen else statistics)
    assert [module.training for module in model] == [True, not norm_is_frozen, True]  # evaluation put the modes back
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_is_thawed_in_the_middle_trains_from_then_on():
    model = backbone_and_head()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = model[0].weight.clone()

    class Thaw(vd.Callback):
        def on_epoch_start(self, trainer):
            if trainer.progress.epochs_done == 1:
                assert torch.equal(model[0].weight, first)
                model[0].requires_grad_(True)

    trainer = vd.Trainer(model, optimizer, loss="mse", callbacks=[Thaw()], clip_norm=1.0, **SETTINGS)
    trainer.fit((INPUTS, TARGETS), batch_size=4, epochs=2)
    assert not torch.equal(model[0].weight, first)


def test_groups_train_with_rates_of_their_own():
    model = backbone_and_head()
    groups = [{"params": model[:2].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
    changed = train_frozen(model, torch.optim.SGD(groups, lr=0.1))
    assert {name for name, _ in model.named_parameters()} & changed == {"2.weight", "2.bias"}


def test_trainable_parameters_in_no_optimizer_are_told_by_name(capsys):
    model = backbone_and_head()
    train_frozen(model, torch.optim.SGD(model[2].parameters(), lr=0.1))
    said = capsys.readouterr().err
    assert "4 parameters (0.weight, 0.bias, 1.weight, 1.bias) can be trained, but no optimizer holds them" in said
    assert "name them in freeze=" in said


def test_a_layer_replaced_after_the_optimizer_was_made_is_told(capsys):
    model = backbone_and_head()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(4, 1)
    train_frozen(model, optimizer)
    said = capsys.readouterr().err
    assert "2 parameters (2.weight, 2.bias) can be trained, but no optimizer holds them" in said
    assert "that the optimizer holds are none of the model's: if layers were replaced" in said


def test_parameters_of_the_loss_in_the_optimizer_are_no_reason_to_warn(capsys):
    model, scale = backbone_and_head(), nn.Parameter(torch.ones(1))
    train_frozen(model, torch.optim.SGD([*model.parameters(), scale], lr=0.1))
    frozen = backbone_and_head()
    frozen[:2].requires_grad_(False)
    train_frozen(frozen)
    assert capsys.readouterr().err == ""


# -- what cannot be understood --------------------------------------------------------------------------------------------


def fit_once(model, data, **arguments):
    return vd.fit(model, data, epochs=1, optimizer="sgd", lr=LR, **arguments, **SETTINGS)


def test_a_tuple_with_a_loss_in_it_is_refused_with_a_step():
    model = OneWeight(lambda loss, output: (loss, output))
    with pytest.raises(
        ArgumentError, match=r"returned a tuple \(tensor of shape \(\), tensor of shape \(3, 1\)\).*step_fn="
    ):
        fit_once(model, cut(X, Y))
    result = fit_once(model, cut(X, Y), step_fn=lambda model, batch: {"loss": model(*batch)[0]})
    assert result.metrics["step"] == 3  # as the message says


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("batch", "how"),
    [
        (({"image": X}, Y), "by name, with the entries image of the batch's dict"),
        ({"x": X, "id": X, "y": Y}, "by name, with the entries x, id of the batch's dict"),
        ((X, X, Y), "with the 2 inputs of the batch"),
    ],
)
def test_a_model_that_cannot_take_the_batch_is_explained(batch, how):
    with pytest.raises(
        ArgumentError, match=f"Named was called {how}, and refused: .*forward.*call the model yourself in step_fn="
    ):
        fit_once(Named(), [batch], loss="mse")


def test_a_type_error_inside_of_the_model_stays_as_it_is():
    class Broken(Named):
        def forward(self, x):
            return len(5)

    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        fit_once(Broken(), cut(X, Y), loss="mse")


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (
            {"x": X.float(), "y": Y.float()},
            r"'x' is float32 \(8, 1\) on cpu, the model's first weight is float64 \(1, 1\)",
        ),
        (({"x": X.float()}, Y), r"'x' is float32 \(8, 1\) on cpu"),
        (((X.float(),), Y), r"input 0 is float32 \(8, 1\) on cpu"),
        ((X.float(), Y), r"the input is float32 \(8, 1\) on cpu.*\.to\(torch.float64\)"),
    ],
)
def test_inputs_of_another_dtype_are_described_wherever_they_are(batch, told):
    with pytest.raises(DataError, match=f"The first batch does not fit the model: {told}"):
        fit_once(Named(), [batch], loss="mse")


def test_many_inputs_are_counted():
    class Six(Named):
        def forward(self, *inputs):
            return self.layer(torch.cat(inputs, dim=1))

    with pytest.raises(DataError, match=r"input 3 is float64 \(8, 1\) on cpu, and 2 more, the model's first weight"):
        fit_once(Six(), [(X,) * 6 + (Y,)], loss="mse")


@pytest.mark.parametrize("make", [lambda x, y: {"x": x, "label": y}, lambda x, y: ({"x": x}, y)])
def test_a_late_label_out_of_range_is_explained_in_dicts_too(make):
    labels = torch.tensor([0, 1, 7, 0])

    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    batches = [make(X[:4].float(), labels.clamp(max=1)), make(X[4:].float(), labels)]
    with pytest.raises(DataError, match=r"Target 7 is out of bounds; the labels of this batch go from 0 to 7"):
        fit_once(Two(1, 2), batches, loss="cross_entropy")


def test_a_dict_without_a_target_is_refused_with_its_keys():
    with pytest.raises(DataError, match=r"dict with the keys a, b\. None of them is a target"):
        fit_once(OneWeight(), [{"a": X, "b": Y}], loss="mse")


@pytest.mark.parametrize(
    ("returned", "fragment"),
    [
        ({"loss": None}, "step_fn returned a dict without a loss tensor"),
        ({"loss": 0.5}, "step_fn returned a dict without a loss tensor"),
        (types.SimpleNamespace(logits=X), "step_fn returned a SimpleNamespace without a loss tensor"),
        (X, r"tensor of shape \(8, 1\), which is no loss"),
        ({"loss": X.mean()}, "a loss without a gradient"),
    ],
)
def test_a_step_that_returns_no_loss_is_refused(returned, fragment):
    with pytest.raises(ArgumentError, match=fragment):
        fit_once(OneWeight(), [(X, Y)], step_fn=lambda model, batch: returned)


# -- a transformers model -------------------------------------------------------------------------------------------------


def test_a_transformers_model_with_its_own_batches_and_outputs(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with suppress(ImportError):
        import_torchvision()  # which transformers imports where it is installed, and which may not fit the build of torch
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(2))
    batches = [transformers.BatchEncoding({"input_ids": part, "labels": part}) for part in ids.split((4, 2))]
    twin = copy.deepcopy(model).train()

    trainer = vd.Trainer(model, "sgd", lr=0.1, accumulate=2, **SETTINGS)
    result = trainer.fit(batches, batches, epochs=1)

    whole = twin(input_ids=ids, labels=ids).loss
    whole.backward()
    assert (trainer.progress.steps_done, trainer.progress.samples_done) == (1, 6)
    assert result.metrics["train/loss"] == pytest.approx(whole.item(), rel=1e-6)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter - 0.1 * parameter.grad, rtol=1e-5, atol=1e-6)
    outputs = trainer.predict([transformers.BatchEncoding({"input_ids": ids})])
    assert outputs[0].logits.shape == (6, 5, 7)
