"""What is handed in as data, and given again."""

import pytest
import torch
from torch import nn

from velodrome import DataLoader, Trainer
from velodrome.errors import ArgumentError
from velodrome.sources import Sources

X, Y = torch.arange(12.0).reshape(12, 1), torch.zeros(12, 1)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def sources(lines):
    return Sources(device=torch.device("cpu"), seed=3, say=lines.append)


def make_trainer():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return Trainer(model, "sgd", lr=0.0, loss="mse", seed=1, progress=False, device="cpu")


def test_same_data_again_is_the_same_source_and_is_told_once(sources, lines):
    first = sources.get((X, Y), role="train", batch_size=4, shuffle=True)
    assert sources.get((X, Y), role="train", batch_size=4, shuffle=True) is first
    assert sources.get((X, Y), role="train", shuffle=True) is first
    assert sources.get(first, role="train", shuffle=True) is first
    assert len(lines) == 1
    assert lines[0].startswith("train: 12 samples, in memory, batches of 4, shuffled")


def test_other_batch_size_or_order_is_another_source(sources):
    first = sources.get((X, Y), role="train", batch_size=4, shuffle=True)
    assert len(sources.get((X, Y), role="train", batch_size=3, shuffle=True)) == 4
    unshuffled = sources.get((X, Y), role="eval", default_batch_size=1000)
    assert len(unshuffled) == 1
    assert len(first) == 3
    assert torch.equal(next(iter(unshuffled))[0], X)


def test_batch_size_for_a_loader_that_is_known_is_still_refused(sources):
    loader = DataLoader((X, Y), 4)
    sources.get(loader, role="train")
    with pytest.raises(ArgumentError, match="batch_size=8 was given, but train is a DataLoader"):
        sources.get(loader, role="train", batch_size=8)


def test_predict_on_the_data_of_fit_keeps_their_order():
    trainer = make_trainer()
    data = (X, Y)
    trainer.fit(data, batch_size=4, epochs=1)
    assert torch.equal(trainer.predict(data), X)
    assert torch.equal(trainer.predict(data, batch_size=5), X)


def test_fit_twice_with_another_batch_size_takes_the_new_one():
    trainer = make_trainer()
    data = (X, Y)
    trainer.fit(data, batch_size=4, epochs=1)
    assert trainer.progress.steps_done == 3
    trainer.fit(data, batch_size=6, epochs=2)
    assert trainer.progress.steps_done == 5
    trainer.fit(data, epochs=3)
    assert trainer.progress.steps_done == 8  # the first batch size


def test_validation_tensors_beside_a_loader_need_no_batch_size():
    result = make_trainer().fit(DataLoader((X, Y), 4), (X, Y), epochs=1)
    assert result.metrics["val/loss"] == pytest.approx(sum(i * i for i in range(12)) / 12)


def test_changed_list_of_batches_given_again_is_read_anew():
    batches = [(X, Y)]
    trainer = make_trainer()
    trainer.fit(batches, epochs=1)
    batches.append((X, Y))
    trainer.fit(batches, epochs=2)
    assert trainer.progress.steps_done == 3
