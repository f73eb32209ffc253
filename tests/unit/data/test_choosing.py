"""Workers by measurement: the model of what they save, by hand; and that neither the trial nor its outcome changes a sample."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import velodrome as vd
from velodrome.data import choosing
from velodrome.data.choosing import choose_workers
from velodrome.errors import ArgumentError, FetchError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize(
    ("fetch_ms", "step_ms", "cores", "threads", "num_batches", "expected"),
    [
        (30, 10, 8, 1, 1000, 3),  # 30.5 / 3 = 10.2 is within 5% of the loop's own 10.5
        (1, 20, 8, 1, 1000, 0),  # 21 would become 20.5
        (30, 10, 1, 1, 1000, 0),  # one core has the same work, and the handover
        (10, 10, 2, 2, 1000, 1),  # (10.5 + 2 * 10) / 2 = 15.25 of 20, with one worker as with two
        (30, 10, 8, 1, 3, 0),  # three batches do not pay for the start
        (30, 10, 8, 1, None, 3),
        (100, 1, 4, 1, 1000, 4),  # never more than the cores
    ],
)
def test_workers_that_the_model_expects_to_pay(fetch_ms, step_ms, cores, threads, num_batches, expected):
    found = choose_workers(
        fetch_s=fetch_ms / 1e3, step_s=step_ms / 1e3, cores=cores, threads=threads, num_batches=num_batches
    )
    assert found == expected


class Drawn(Dataset):
    """Each sample is its index and a random number; one may be unreadable."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 240

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError("planted")
        return torch.tensor([index, torch.rand(()).item()], dtype=torch.float64)


def end_at_once(worker):
    os._exit(3)


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.arange(20)


@pytest.fixture
def forced(monkeypatch):
    """Return a function that says what the model and the trial shall find; the trial is short."""
    monkeypatch.setattr(choosing, "_MEASURED_S", 0.0)

    def say(workers, worth_it):
        monkeypatch.setattr(choosing, "choose_workers", lambda **_: workers)
        monkeypatch.setattr(choosing, "_WORTH_IT", 1e9 if worth_it else 0.0)

    return say


def make(data=None, num_workers="auto", batch_size=4, **arguments):
    shuffle = "sampler" not in arguments
    return vd.DataLoader(data or Drawn(), batch_size, shuffle=shuffle, seed=3, num_workers=num_workers, **arguments)


def epochs_of(loader, epochs=2):
    return [torch.cat(list(loader)) for _ in range(epochs)]


@pytest.mark.parametrize(
    ("workers", "worth_it", "line"),
    [
        (0, True, "no workers, measured:"),
        (2, True, "2 workers, measured:"),
        (2, False, "no workers, measured:"),
    ],
)
@pytest.mark.parametrize("sampler", [None, list(range(239, -1, -1))], ids=["shuffled", "sampler"])
def test_order_and_numbers_are_the_same_whatever_is_chosen(forced, workers, worth_it, line, sampler):
    forced(workers, worth_it)
    arguments = {} if sampler is None else {"sampler": sampler}
    said = []
    loader = make(**arguments)
    loader.say = said.append
    found = epochs_of(loader)
    for a, b in zip(found, epochs_of(make(num_workers=0, **arguments)), strict=True):
        assert torch.equal(a, b)
    assert len(said) == 1
    if sampler is None:  # a sampler's order cannot be asked for twice: without a trial
        assert said[0].startswith(line)
        assert loader.num_workers_in_use == (workers if worth_it else 0)
    assert said[0] in loader.describe()


@pytest.mark.parametrize("done", [1, 9, 14, 30])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_saved_at_any_time_is_exact(forced, workers, done):
    """In the middle of measuring, of the trial, and after it."""
    forced(workers, True)
    first = make()
    iterator = iter(first)
    for _ in range(done):
        next(iterator)
    state = first.state_dict()
    iterator.close()
    after = make()
    after.load_state_dict(state)
    assert torch.equal(torch.cat(list(after)), epochs_of(make(num_workers=0), 1)[0][4 * done :])


def test_workers_that_cannot_be_started_are_said_and_done_without(forced):
    forced(2, True)
    data = Drawn()
    data.not_for_others = lambda: None
    loader = make(data, multiprocessing_context="spawn")
    assert torch.equal(epochs_of(loader, 1)[0], epochs_of(make(num_workers=0), 1)[0])
    assert "2 workers failed: Drawn cannot be sent to worker processes" in loader.describe()
    assert loader.workers_failed == "start"


def test_workers_that_fail_at_work_are_told_from_those_that_cannot_be_started(forced):
    forced(2, True)
    loader = make(worker_init_fn=end_at_once)
    assert torch.equal(epochs_of(loader, 1)[0], epochs_of(make(num_workers=0), 1)[0])
    assert loader.workers_failed == "run"
    assert make().workers_failed == ""


@pytest.mark.parametrize("bad", [0, 120, 239])
def test_a_sample_that_cannot_be_read_is_named_wherever_it_comes(forced, bad):
    forced(2, True)
    loader = vd.DataLoader(Drawn(bad=bad), 4, num_workers="auto")
    with pytest.raises(FetchError, match=f"Reading sample {bad} of Drawn failed"):
        list(loader)


def test_a_stream_is_read_without_workers_and_its_line_says_why():
    loader = vd.DataLoader(Stream(), 4, num_workers="auto")
    assert torch.equal(torch.cat(list(loader)), torch.arange(20))
    assert "without workers, whose number would decide the order" in loader.describe()


def test_what_is_said_before_and_for_data_in_memory():
    assert "workers as measured" in make().describe()
    assert "worker" not in vd.DataLoader(torch.zeros(9, 2), 4, num_workers="auto").describe()


def test_another_text_is_refused():
    with pytest.raises(ArgumentError, match='or "auto" to have it measured'):
        make(num_workers="many")


def test_what_resident_may_be():
    with pytest.raises(ArgumentError, match='True, False or "auto"'):
        vd.DataLoader(torch.zeros(9, 2), 4, resident="gpu")  # pyright: ignore[reportArgumentType]


def test_a_trainer_shows_what_was_measured(forced, capsys):
    forced(0, True)

    def step(model, batch):
        return model(batch[:, :1].float()).mean()

    trainer = vd.Trainer(torch.nn.Linear(1, 1), optimizer="sgd", lr=0.1, seed=0, step_fn=step)
    trainer.fit(make(), epochs=1)
    shown = capsys.readouterr()
    assert "train: no workers, measured:" in shown.out + shown.err
