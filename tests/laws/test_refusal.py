"""Law 7: what cannot be trained on is refused before the first update, in one sentence with the numbers and the way out."""

import math
import re

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import velodrome
from velodrome import Callback, Trainer
from velodrome.errors import ArgumentError, DataError, NumericsError, RefusedError, VelodromeError

X = torch.linspace(-1, 1, 24).reshape(8, 3)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
NUMBERS = torch.linspace(0, 1, 8).reshape(8, 1)


def classifier():
    return nn.Linear(3, 3)


def regressor():
    return nn.Linear(3, 1)


def sigmoid():
    return nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())


def labels_with(**changes):
    labels = LABELS.clone()
    for index, label in changes.items():
        labels[int(index.removeprefix("at"))] = label
    return labels


def numbers_with(value, at):
    numbers = NUMBERS.clone()
    numbers[at] = value
    return numbers


def inputs_with(value, at):
    inputs = X.clone()
    inputs[at, 1] = value
    return inputs


class NoSamples(IterableDataset):
    def __iter__(self):
        return iter(())


FIT = {"batch_size": 4, "epochs": 1}

# id: (model, arguments of fit, error, what the message must say)
DATA = {
    "empty tensors": (classifier, {"train": (X[:0], LABELS[:0])}, r"The dataset has 0 samples\. Training needs at least one"),
    "empty dataset": (classifier, {"train": TensorDataset(X[:0], LABELS[:0])}, r"The dataset has 0 samples"),
    "empty iterable": (classifier, {"train": [], "batch_size": None}, r"The training data gave 0 batches in epoch 1"),
    "empty iterable dataset": (classifier, {"train": NoSamples()}, r"The training data gave 0 batches in epoch 1"),
    "empty validation": (classifier, {"val": (X[:0], LABELS[:0])}, r"The dataset has 0 samples"),
    "empty validation iterable": (classifier, {"val": []}, r"The val data gave 0 batches\. Evaluation needs at least one"),
    "lengths differ": (classifier, {"train": (X, LABELS[:5])}, r"tensors of 8, 5 samples\. All must have the same number"),
    "label too large": (classifier, {"train": (X, labels_with(at6=3, at7=9))}, r"train label 3 at sample 6 is out of range \(2 of 8 samples are; labels go from 0 to 9\)\. The model has 3 outputs, so labels must be 0\.\.2: .* 10 outputs"),
    "label negative": (classifier, {"train": (X, labels_with(at5=-1))}, r"train label -1 at sample 5 is out of range"),
    "validation label too large": (classifier, {"val": (X, labels_with(at7=3))}, r"val label 3 at sample 7 is out of range"),
    "ignored label elsewhere": (classifier, {"train": (X, labels_with(at1=-100, at3=-7))}, r"train label -7 at sample 3"),
    "float labels": (classifier, {"train": (X, LABELS.float())}, r"torch\.float32 train targets of shape \(4,\).*convert them with \.long\(\)"),
    "probabilities of other classes": (classifier, {"train": (X, torch.full((8, 5), 0.2))}, r"shape \(4, 5\), as probabilities of 5 classes have, for outputs of shape \(4, 3\), 3 classes.*num_classes of MixUp"),
    "int32 labels": (classifier, {"train": (X, LABELS.int())}, r"torch\.int32 train targets.*convert them with \.long\(\)"),
    "labels in a column": (classifier, {"train": (X, LABELS.unsqueeze(1))}, r"targets of shape \(4, 1\) for outputs of shape \(4, 3\)\. It wants \(4,\)\. Remove the extra dimension with \.squeeze\(1\)"),
    "NaN input": (classifier, {"train": (inputs_with(math.nan, at=6), LABELS)}, r"train inputs holds NaN or infinity in 1 of 8 samples, the first is sample 6"),
    "infinite input": (classifier, {"train": (inputs_with(math.inf, at=2), LABELS)}, r"the first is sample 2\. Every number must be finite"),
    "NaN validation input": (classifier, {"val": (inputs_with(math.nan, at=1), LABELS)}, r"val inputs holds NaN .* sample 1"),
    "NaN target": (regressor, {"train": (X, numbers_with(math.nan, at=3)), "loss": "mse"}, r"train targets holds NaN or infinity in 1 of 8 samples, the first is sample 3"),
    "integer target of mse": (regressor, {"train": (X, NUMBERS.long()), "loss": "mse"}, r"torch\.int64 train targets.*convert them with \.float\(\)"),
    "bce targets above one": (sigmoid, {"train": (X, numbers_with(2.0, at=5)), "loss": "bce"}, r"targets from 0 to 2; the first bad one is sample 5\. They must lie in 0\.\.1"),
    "bce_with_logits targets below zero": (regressor, {"train": (X, numbers_with(-1.0, at=4)), "loss": "bce_with_logits"}, r"targets from -1 to 1; the first bad one is sample 4"),
    "bce outputs outside": (lambda: nn.Sequential(regressor(), nn.Threshold(9, 7.0)), {"train": (X, NUMBERS), "loss": "bce"}, r"bce got outputs from 7 to 7\. They must lie in 0\.\.1: end the model with a Sigmoid"),
    "double inputs": (classifier, {"train": (X.double(), LABELS)}, r"float64 \(4, 3\) on cpu.*Convert the data with \.to\(torch\.float32\)"),
    "numpy double inputs": (classifier, {"train": (X.double().numpy(), LABELS.numpy())}, r"float64 \(4, 3\) on cpu"),
    "array of strings": (classifier, {"train": (numpy.array(["a", "b"]), LABELS[:2])}, r"an array of dtype <U1 is not numeric"),
    "batch without target": (classifier, {"train": X}, r"The batch is a Tensor without a target\. The loss needs \(input, target\)"),
    "dict without target": (classifier, {"train": {"x": X, "z": LABELS}}, r"the keys x, z\. None of them is a target"),
}  # fmt: skip


def run_fit(build, arguments):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {"train": (X, LABELS), "loss": "cross_entropy", "device": "cpu", "progress": False, **FIT, **arguments}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    return model, before, arguments


@pytest.mark.parametrize("case", DATA)
def test_data_are_refused_and_the_weights_are_untouched(case):
    build, changes, message = DATA[case]
    model, before, arguments = run_fit(build, changes)
    random_state = torch.get_rng_state()
    with pytest.raises(DataError, match=message) as caught:
        velodrome.fit(model, **arguments)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2
    if case != "empty validation iterable":  # nobody can know before it is asked for its batches
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


SHAPED = ["mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits", "kl_div", "poisson_nll", "soft_margin"]


@pytest.mark.parametrize("loss", SHAPED)
def test_targets_that_would_broadcast_are_refused(loss):
    model = sigmoid()
    message = r"outputs of shape \(4, 1\) and train targets of shape \(4,\): they would broadcast to \(4, 4\), a wrong loss in silence\. Their shapes must be equal\. Use target\.unsqueeze\(1\)"
    with pytest.raises(DataError, match=message):
        velodrome.fit(model, (X, NUMBERS.squeeze(1)), loss=loss, device="cpu", progress=False, **FIT)


@pytest.mark.parametrize("loss", SHAPED)
def test_outputs_that_would_broadcast_are_refused(loss):
    model = nn.Sequential(sigmoid(), nn.Flatten(0))
    with pytest.raises(
        DataError, match=r"outputs of shape \(4,\) and train targets of shape \(4, 1\).*target\.squeeze\(-1\)"
    ):
        velodrome.fit(model, (X, NUMBERS), loss=loss, device="cpu", progress=False, **FIT)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss, nn.L1Loss(), nn.BCEWithLogitsLoss()])
def test_losses_given_as_objects_are_checked_like_those_given_by_name(loss):
    with pytest.raises(DataError, match=r"they would broadcast to \(4, 4\)"):
        velodrome.fit(regressor(), (X, NUMBERS.squeeze(1)), loss=loss, device="cpu", progress=False, **FIT)


def test_shapes_that_do_not_even_broadcast_are_refused():
    with pytest.raises(DataError, match=r"\(4, 3\) and train targets of shape \(4, 2\): they cannot be compared"):
        velodrome.fit(classifier(), (X, X[:, :2]), loss="mse", device="cpu", progress=False, **FIT)


def test_ignored_labels_and_class_probabilities_are_not_refused():
    common = {"device": "cpu", "progress": False, **FIT}
    velodrome.fit(classifier(), (X, labels_with(at1=-100)), loss="cross_entropy", **common)
    velodrome.fit(
        classifier(), (X, labels_with(at1=-1)), loss="cross_entropy", loss_args={"ignore_index": -1}, **common
    )
    velodrome.fit(classifier(), (X, labels_with(at1=99)), loss=nn.CrossEntropyLoss(ignore_index=99), **common)
    velodrome.fit(classifier(), (X, torch.softmax(X, 1)), loss="cross_entropy", **common)


def test_drop_last_that_leaves_no_batch_is_refused_with_both_numbers():
    message = r"drop_last leaves no batch: the dataset has 8 samples, fewer than batch_size=9\. Use a batch_size of at most 8, or drop_last=False"
    with pytest.raises(DataError, match=message):
        velodrome.DataLoader((X, LABELS), 9, drop_last=True)
    with pytest.raises(DataError, match=message):
        velodrome.fit(
            classifier(), DataLoader(TensorDataset(X, LABELS), 9, drop_last=True), loss="cross_entropy", epochs=1,
            device="cpu", progress=False,
        )  # fmt: skip


def test_generator_used_up_by_the_first_epoch_is_refused_in_the_second():
    batches = (batch for batch in [(X, LABELS)])
    with pytest.raises(
        DataError,
        match=r"The generator given as data is exhausted: epoch 2 has 0 batches\. A generator can be run through only once",
    ):
        velodrome.fit(classifier(), batches, loss="cross_entropy", epochs=2, device="cpu", progress=False)


def test_generator_for_validation_is_refused_in_the_second_epoch():
    batches = (batch for batch in [(X, LABELS)])
    with pytest.raises(DataError, match="The generator given as data is exhausted"):
        velodrome.fit(
            classifier(),
            (X, LABELS),
            batches,
            loss="cross_entropy",
            epochs=2,
            batch_size=4,
            device="cpu",
            progress=False,
        )


frozen = classifier()
frozen.requires_grad_(False)

# id: (arguments of Trainer, what the message must say)
TRAINER = {
    "model class": ({"model": nn.Linear}, r"model is a type\. It must be a torch\.nn\.Module: an instance, not the class"),
    "model of another kind": ({"model": lambda x: x}, r"model is a function\. It must be a torch\.nn\.Module"),
    "unknown loss": ({"loss": "cross_entropi"}, r"loss='cross_entropi' is not a known loss\. Did you mean \"cross_entropy\"\?"),
    "loss not callable": ({"loss": 3}, r"loss=3 cannot be called"),
    "unknown loss argument": ({"loss_args": {"label_smoothin": 0.1}}, r"no argument 'label_smoothin'\. Did you mean \"label_smoothing\"\?"),
    "loss with reduction sum": ({"loss_args": {"reduction": "sum"}}, r"reduction='sum' is no mean"),
    "loss arguments with a loss object": ({"loss": nn.MSELoss(), "loss_args": {"beta": 1}}, r"loss arguments \['beta'\] were given with a loss object"),
    "loss and step_fn": ({"step_fn": lambda model, batch: None}, r"loss and step_fn were both given"),
    "unknown optimizer": ({"optimizer": "adamm"}, r"optimizer='adamm' is not a known optimizer\. Did you mean \"adam\"\?"),
    "lbfgs": ({"optimizer": "lbfgs"}, r"LBFGS needs a closure, which the loop does not have"),
    "unknown optimizer argument": ({"optimizer": "sgd", "optimizer_args": {"momentun": 0.9}}, r"no argument 'momentun'\. Did you mean \"momentum\"\?"),
    "negative lr": ({"optimizer": "sgd", "lr": -1.0}, r"lr=-1\.0 is not a learning rate\. It must be a number of at least 0"),
    "lr in words": ({"optimizer": "sgd", "lr": "fast"}, r"lr='fast' is not a learning rate"),
    "optimizer refuses its arguments": ({"optimizer": "sgd", "optimizer_args": {"nesterov": True}}, r"torch\.optim\.SGD refused its arguments: .*momentum"),
    "optimizer class instance missing": ({"optimizer": 5}, r"optimizer=5 is no optimizer"),
    "factory that makes nothing": ({"optimizer": lambda parameters: None}, r"The optimizer factory returned a NoneType"),
    "optimizer of another model": ({"optimizer": torch.optim.SGD(classifier().parameters(), lr=0.1)}, r"holds 2 parameters, none of them a trainable parameter of this Linear"),
    "lr beside an instance": ({"optimizer": torch.optim.SGD(classifier().parameters(), lr=0.1), "lr": 0.1}, r"lr was given together with an optimizer instance"),
    "all frozen": ({"model": frozen}, r"The model has no trainable parameter \(2 parameters, all frozen\)"),
    "no parameters": ({"model": nn.Flatten()}, r"no trainable parameter \(0 parameters"),
    "unknown metric": ({"metrics": ["acuracy"]}, r"metrics='acuracy' is not a known metric\. Did you mean \"accuracy\"\?"),
    "metrics in one string": ({"metrics": "accuracy"}, r"metrics='accuracy' is not a list\. Write metrics=\[\"accuracy\"\]"),
    "unknown device": ({"device": "gpu"}, r"device='gpu' is not a device\. Write \"auto\", \"cpu\", \"cuda\""),
    "callback class": ({"callbacks": [Callback]}, r"callbacks contains <class .*Callback'>\. Each must be an instance of velodrome\.Callback"),
    "callback of another kind": ({"callbacks": [print]}, r"Each must be an instance of velodrome\.Callback"),
    "seed negative": ({"seed": -1}, r"seed=-1 is not a seed\. It must be a whole number from 0 to 2\*\*63 - 1"),
    "seed True": ({"seed": True}, r"seed=True is not a seed"),
    "log_every in epochs": ({"log_every": "1 epoch"}, r"log_every='1 epoch' is in epochs\. It must be in steps"),
    "log_every in words": ({"log_every": "often"}, r"log_every='often' has the unknown unit 'often'"),
    "checkpoint in words": ({"checkpoint": "every now"}, r"'every now' has the unknown unit"),
    "unknown mode of compilation": ({"compile": "fast"}, r"compile='fast' is no mode of torch\.compile\. .*Known: default"),
    "unknown answer to full memory": ({"on_oom": "halve"}, r"on_oom='halve' is unknown\. .*Known: split, stop"),
    "unknown logger": ({"loggers": ["tensorbord"]}, r"loggers contains 'tensorbord', which is unknown\. Did you mean \"tensorboard\"\?"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINER)
def test_trainer_refuses_an_argument(case, tmp_path):
    arguments, message = TRAINER[case]
    arguments = {"model": classifier(), "progress": False, "device": "cpu", "run_dir": tmp_path / "run", **arguments}
    if "step_fn" in arguments or "loss_args" in arguments:
        arguments.setdefault("loss", "cross_entropy")
    with pytest.raises(ArgumentError, match=message) as caught:
        Trainer(**arguments)
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")])
def test_cuda_where_there_is_none_is_refused(device):
    with pytest.raises(
        ArgumentError, match=r"was asked for, but (this build|no CUDA).*Use device=\"auto\" or device=\"cpu\""
    ):
        Trainer(classifier(), device=device)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, r"No budget was given\. Say how long to train: epochs=5, steps=1000 or seconds=60"),
        ({"epochs": 0}, r"epochs=0 is not a number of epochs\. It must be a whole number of at least 1"),
        ({"epochs": 1.5}, r"epochs=1\.5 is not a number of epochs"),
        ({"epochs": True}, r"epochs=True is not a number"),
        ({"steps": -3}, r"steps=-3 is not a number of steps"),
        ({"seconds": 0}, r"seconds=0 is not a time\. It must be a positive number"),
        ({"seconds": math.nan}, r"seconds=nan is not a time"),
        ({"seconds": "60"}, r"seconds='60' is not a time"),
    ],
)
def test_fit_without_a_good_budget_is_refused(budget, message):
    with pytest.raises(ArgumentError, match=message):
        velodrome.fit(
            classifier(), (X, LABELS), loss="cross_entropy", batch_size=4, device="cpu", progress=False, **budget
        )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("optimiser", "optimizer"), ("metric", "metrics"), ("epoch", "epochs"), ("learning_rate", None)],
)
def test_unknown_argument_of_fit_is_refused_with_the_nearest_name(wrong, right):
    message = rf"fit\(\) has no argument '{wrong}'\. " + (rf'Did you mean "{right}"\?' if right else "Known: ")
    with pytest.raises(ArgumentError, match=message):
        velodrome.fit(classifier(), (X, LABELS), loss="cross_entropy", batch_size=4, **{"epochs": 1, wrong: "sgd"})


# id: (what the loss is made of, what the message must say)
LOSSES = {
    "vector": (lambda model: model(X).mean(1), r"step\(\) gave a loss of shape \(8,\)\. It must be a scalar: take its mean\(\)"),
    "number": (lambda model: 1.0, r"step\(\) gave a float as loss\. It must be a scalar tensor"),
    "nothing": (lambda model: None, r"step\(\) gave a NoneType as loss"),
    "detached": (lambda model: model(X).mean().detach(), r"step\(\) gave a loss without a gradient\. Do not detach\(\) it"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_step_refuses_a_loss_that_cannot_be_backpropagated(case):
    make_loss, message = LOSSES[case]
    model = classifier()
    trainer = Trainer(model, "sgd", lr=0.1, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for _ in epoch.train((X, LABELS), batch_size=4):
            with pytest.raises(ArgumentError, match=message):
                trainer.step(make_loss(model))
            break


def test_loss_function_that_returns_a_vector_is_named():
    loss = lambda output, target: nn.functional.cross_entropy(output, target, reduction="none")  # noqa: E731
    with pytest.raises(ArgumentError, match=r"loss '<lambda>' gave a loss of shape \(4,\)\. It must be a scalar"):
        velodrome.fit(classifier(), (X, LABELS), loss=loss, device="cpu", progress=False, **FIT)


def test_loss_made_in_no_grad_is_refused():
    def loss(output, target):
        with torch.no_grad():
            return nn.functional.cross_entropy(output.detach(), target)

    with pytest.raises(ArgumentError, match="loss 'loss' gave a loss without a gradient"):
        velodrome.fit(classifier(), (X, LABELS), loss=loss, device="cpu", progress=False, **FIT)


def test_step_that_is_never_called_is_refused():
    trainer = Trainer(classifier(), "sgd", lr=0.1, device="cpu", progress=False)
    message = r"Epoch 1 handed out 2 training batches, but trainer\.step\(loss\) was never called\. Nothing was trained"
    epochs = trainer.epochs(3)
    assert len(list(next(epochs).train((X, LABELS), batch_size=4))) == 2
    with pytest.raises(ArgumentError, match=message):
        next(epochs)


def test_step_and_log_outside_of_their_loops_are_refused():
    model = classifier()
    trainer = Trainer(model, "sgd", lr=0.1, device="cpu", progress=False)
    with pytest.raises(ArgumentError, match=r"step\(\) was called outside of epoch\.train\(\.\.\.\)"):
        trainer.step(model(X).mean())
    with pytest.raises(ArgumentError, match=r"log\(\) was called outside of epoch\.train"):
        trainer.log(a=1.0)
    for epoch in trainer.epochs(1):
        for _ in epoch.evaluate((X, LABELS), batch_size=4):
            with pytest.raises(ArgumentError, match=r"step\(\) was called outside of epoch\.train"):
                trainer.step(model(X).mean())


def test_trainer_without_an_optimizer_does_not_train():
    trainer = Trainer(classifier(), None, loss="cross_entropy", device="cpu", progress=False)
    with pytest.raises(ArgumentError, match=r"no optimizer: it only evaluates and predicts\. Give optimizer=\"adam\""):
        trainer.fit((X, LABELS), **FIT)


def test_data_without_a_batch_size_are_refused():
    with pytest.raises(ArgumentError, match=r"train is a tuple, which needs a batch size\. Give batch_size=64"):
        velodrome.fit(classifier(), (X, LABELS), loss="cross_entropy", epochs=1, device="cpu", progress=False)


def test_batch_size_beside_a_loader_is_refused():
    loader = velodrome.DataLoader((X, LABELS), 4)
    with pytest.raises(
        ArgumentError, match=r"batch_size=8 was given, but train is a DataLoader, which makes its own batches"
    ):
        velodrome.fit(classifier(), loader, loss="cross_entropy", batch_size=8, epochs=1, device="cpu", progress=False)


def test_data_that_cannot_be_iterated_are_refused():
    with pytest.raises(ArgumentError, match=r"train is a int, which cannot be iterated"):
        velodrome.fit(classifier(), 5, loss="cross_entropy", epochs=1, device="cpu", progress=False)


class Diverges(nn.Module):
    """Gives infinity times zero from its third training batch on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.layer(x) * (math.nan if self.calls > 2 else 1.0)


def test_loss_that_becomes_nan_stops_training_and_names_the_step():
    events = []

    class Listens(Callback):
        def on_epoch_end(self, trainer, row):
            events.append(("epoch", trainer.progress.steps_done))

        def on_exception(self, trainer, error):
            events.append(type(error))

    trainer = Trainer(
        Diverges(), "sgd", lr=0.01, loss="mse", log_every="2 steps", callbacks=[Listens()], device="cpu", progress=False
    )
    with pytest.raises(
        NumericsError,
        match=r"The training loss became nan at step 3 \(epoch 2, batch 1, samples .*, lr 0\.01\)",
    ) as caught:
        trainer.fit((X, NUMBERS), (X, NUMBERS), batch_size=4, epochs=5)
    assert caught.value.step == 3
    assert isinstance(caught.value, ArithmeticError)
    assert caught.value.exit_code == 1
    assert events == [("epoch", 2), NumericsError]
    assert trainer.result.best is not None
    assert trainer.result.best["epoch"] == 1
    assert [row["epoch"] for row in trainer.result.history] == [1]


def test_nan_in_the_last_batch_of_an_epoch_is_found_at_its_end():
    trainer = Trainer(Diverges(), "sgd", lr=0.01, loss="mse", device="cpu", progress=False)
    with pytest.raises(NumericsError, match=r"at step 3 \(epoch 1, batch 3"):
        trainer.fit((X, NUMBERS), batch_size=2, epochs=5)
    assert trainer.result.best is None
    assert trainer.result.history == []


def test_every_error_is_in_the_one_tree():
    for kind in (ArgumentError, DataError, NumericsError, RefusedError):
        assert issubclass(kind, VelodromeError)


def test_messages_are_sentences_with_a_way_out():
    """Each table above holds messages of at least two sentences that end in a full stop."""
    for case in ("empty tensors", "label too large", "NaN input"):
        build, changes, _ = DATA[case]
        model, _, arguments = run_fit(build, changes)
        with pytest.raises(DataError) as caught:
            velodrome.fit(model, **arguments)
        assert len(re.findall(r"[.:] ", str(caught.value))) >= 1
        assert str(caught.value).endswith(".")
