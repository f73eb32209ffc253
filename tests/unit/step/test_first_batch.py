"""The first batch of every source is checked before the loss sees it."""

import gc

import pytest
import torch
from torch import nn

from velodrome import Trainer, evaluate
from velodrome.errors import ArgumentError, DataError

X = torch.randn(6, 3)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class CountsForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


def make_trainer(model, loss="cross_entropy", **arguments):
    return Trainer(model, "sgd", lr=0.1, loss=loss, progress=False, device="cpu", **arguments)


def test_bad_labels_are_refused_before_the_loss_is_called():
    seen = []

    spied = nn.CrossEntropyLoss()
    spied.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with pytest.raises(DataError, match="train label 3 at sample 5 of the first batch is out of range"):
        make_trainer(nn.Linear(3, 3), spied).fit([(X, torch.tensor([0, 1, 2, 0, 1, 3]))] * 2, epochs=1)
    assert seen == []


def test_first_batch_runs_the_model_once_a_batch_as_every_other():
    model = CountsForward()
    make_trainer(model).fit((X, LABELS), batch_size=2, epochs=2)
    assert model.calls == 6


def test_model_that_fails_on_the_first_batch_is_not_run_again():
    model = CountsForward()
    with pytest.raises(DataError, match=r"float32 \(2, 5\).*first weight is float32 \(3, 3\)"):
        make_trainer(model).fit((torch.randn(6, 5), LABELS), batch_size=2, epochs=1)
    assert model.calls == 1


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, NotImplementedError])
def test_errors_of_the_users_own_code_pass_as_they_are(kind):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            raise kind("mine")

    with pytest.raises(kind, match="mine"):
        make_trainer(Fails()).fit((X, LABELS), batch_size=2, epochs=1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.double(), r"input is float64 \(6, 3\) on cpu, .* float32 \(3, 3\) on cpu\. Convert the data with \.to\(torch\.float32\)"),
        (X.long(), r"input is int64 \(6, 3\) on cpu.* Convert the data with \.float\(\) first"),
        (torch.randn(6, 4), r"The model failed on the first batch: the input is float32 \(6, 4\)"),
    ],
    ids=["double", "integers", "width"],
)  # fmt: skip
def test_inputs_that_do_not_fit_the_model_are_explained(x, message):
    with pytest.raises(DataError, match=message):
        make_trainer(nn.Linear(3, 3)).fit((x, LABELS), batch_size=6, epochs=1)


def test_embedding_index_out_of_range_is_explained():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"The model failed on the first batch: the input is int64.*out of range"):
        make_trainer(model).fit((torch.tensor([[1], [4]]), torch.tensor([0, 1])), batch_size=2, epochs=1)


def test_forgotten_loss_is_named_when_the_model_cannot_take_the_whole_batch():
    with pytest.raises(ArgumentError, match=r'Linear was called with all 2 parts of the batch .* loss="cross_entropy"'):
        make_trainer(nn.Linear(3, 3), loss=None).fit((X, LABELS), batch_size=2, epochs=1)


def test_forgotten_loss_in_evaluate_is_refused_rather_than_averaged():
    class Scores(nn.Module):
        def forward(self, x, y):
            return x

    with pytest.raises(ArgumentError, match=r"No loss was given, and Scores returned a tensor of shape \(6, 3\)"):
        evaluate(Scores(), (X, LABELS), device="cpu")


def test_validation_data_are_checked_by_their_own_first_batch():
    bad = torch.tensor([0, 1, 2, 0, 9, 2])
    with pytest.raises(DataError, match="val label 9 at sample 4 is out of range"):
        make_trainer(nn.Linear(3, 3)).fit((X, LABELS), (X, bad), batch_size=2, epochs=1)


def test_second_source_of_training_data_is_checked_too():
    trainer = make_trainer(nn.Linear(3, 3))
    trainer.fit((X, LABELS), batch_size=2, epochs=1)
    with pytest.raises(DataError, match="train label -1 at sample 0"):
        trainer.fit((X, LABELS - 1), batch_size=2, epochs=2)


def test_source_that_takes_the_place_of_one_that_is_gone_is_checked():
    trainer = make_trainer(nn.Linear(3, 3))
    for _ in range(5):
        trainer.evaluate([(X, LABELS)])
        gc.collect()
    for _ in range(5):
        with pytest.raises(DataError, match="eval label 9"):
            trainer.evaluate([(X, LABELS + 9)])
        gc.collect()


def test_validation_data_of_another_size_are_not_measured_by_the_training_output():
    model = nn.Conv2d(1, 2, 1)
    small, large = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 6, 6)
    val = (large, torch.zeros(4, 6, 6, dtype=torch.int64))
    train = (small, torch.zeros(4, 2, 2, dtype=torch.int64))
    result = make_trainer(model).fit(train, val, batch_size=2, epochs=1)
    assert "val/loss" in result.metrics
