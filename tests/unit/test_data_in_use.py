"""What is handed in as data, and given again."""

import gc
import weakref

import pytest
import torch
from torch import nn

from velodrome import Callback, DataLoader, Trainer
from velodrome.data.bound import BoundLoader
from velodrome.data_in_use import DataInUse
from velodrome.errors import ArgumentError, DataError

X, Y = torch.arange(12.0).reshape(12, 1), torch.zeros(12, 1)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def sources(lines):
    return DataInUse(device=torch.device("cpu"), seed=3, say=lines.append)


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


def test_evaluating_and_predicting_outside_of_a_run_keeps_no_data():
    trainer = make_trainer()
    references = []
    for _ in range(3):
        inputs = X.clone()
        references.append(weakref.ref(inputs))
        trainer.predict(inputs)
        trainer.evaluate((inputs, Y))
    del inputs
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_slices_made_anew_every_epoch_do_not_pile_up():
    trainer, references = make_trainer(), []
    for epoch in trainer.epochs(20):
        inputs = X[:6]
        references.append(weakref.ref(inputs))
        for batch in epoch.train((inputs, Y[:6]), batch_size=3):
            trainer.step(trainer.forward(batch).loss)
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 8


def test_data_used_every_epoch_outlast_slices_made_anew(sources):
    def numbers():
        yield from range(100)

    endless = numbers()
    first = sources.get(endless, role="train")
    for _ in range(20):
        sources.get(X[:6], role="val", batch_size=2)
        assert sources.get(endless, role="train") is first


def test_line_that_says_the_same_is_said_once(sources, lines):
    for _ in range(3):
        sources.get(X[:6], role="val", batch_size=2)
    assert len(lines) == 1


def test_evaluation_in_a_callback_keeps_its_source():
    trainer, seen = make_trainer(), []

    class Evaluates(Callback):
        def on_epoch_end(self, trainer, row):
            seen.append(trainer.evaluate((X, Y))["loss"])

    trainer = Trainer(trainer.model, "sgd", lr=0.0, loss="mse", callbacks=[Evaluates()], progress=False, device="cpu")
    trainer.fit(DataLoader((X, Y), 4), epochs=2)
    assert seen == [pytest.approx(sum(i * i for i in range(12)) / 12)] * 2


def test_two_trainers_that_share_a_loader_keep_their_own_orders():
    def orders(others):
        loader = DataLoader((X, Y), 12, shuffle=True)
        trainer, seen = make_trainer(), []
        for epoch in trainer.epochs(2):
            for batch in epoch.train(loader):
                seen.append(batch[0].flatten().tolist())
                trainer.step(trainer.forward(batch).loss)
                assert loader.state_dict() == {"epoch": epoch.index, "samples_done": 12, "seed": 1, "num_samples": 12}
            for other in others:
                other.evaluate(loader)
                assert loader.state_dict()["seed"] == 5
        return seen

    other = Trainer(nn.Linear(1, 1), None, loss="mse", seed=5, progress=False, device="cpu")
    assert orders([]) == orders([other])
    assert orders([])[0] != orders([])[1]


def test_view_puts_data_in_memory_on_its_device_and_leaves_the_loaders_own_where_they_are():
    loader = DataLoader((X, Y), 4, shuffle=True)
    views = [BoundLoader(loader, seed=1, device=torch.device(name)) for name in ("cpu", "meta", "cpu")]
    assert [view.columns.device.type for view in views] == ["cpu", "meta", "cpu"]
    assert [next(iter(view))[0].device.type for view in views] == ["cpu", "meta", "cpu"]
    assert views[1].columns is views[1].columns
    assert loader.columns.device.type == "cpu"
    assert views[0].describe() == "12 samples, in memory, batches of 4, shuffled"
    assert (
        views[1].describe().startswith("12 samples, in memory, on meta, batches of 4, shuffled, resident (0.0 MiB of")
    )


def test_batches_of_a_transform_are_moved_to_the_device():
    sources = DataInUse(device=torch.device("meta"), seed=None, say=lambda line: None)
    plain = BoundLoader(DataLoader((X, Y), 4), seed=1, device=torch.device("meta"))
    made = BoundLoader(
        DataLoader((X, Y), 4, transform=lambda x: torch.zeros(4, 1)), seed=1, device=torch.device("meta")
    )
    for source in (plain, made):
        batch, samples = sources.placer(source)(next(iter(source)))
        assert [part.device.type for part in batch] == ["meta", "meta"]
        assert samples == 4


def test_nan_in_data_is_refused_for_training_and_validation_and_predicted_all_the_same():
    inputs = X.clone()
    inputs[3] = torch.nan
    trainer = make_trainer()
    assert trainer.predict(inputs).isnan().flatten().tolist() == [i == 3 for i in range(12)]
    assert len(trainer.predict((inputs, Y))) == 12
    with pytest.raises(DataError, match="train inputs"):
        trainer.fit((inputs, Y), batch_size=4, epochs=1)
    with pytest.raises(DataError, match="eval inputs"):
        trainer.evaluate((inputs, Y))


def test_changed_list_of_batches_given_again_is_read_anew():
    batches = [(X, Y)]
    trainer = make_trainer()
    trainer.fit(batches, epochs=1)
    batches.append((X, Y))
    trainer.fit(batches, epochs=2)
    assert trainer.progress.steps_done == 3
