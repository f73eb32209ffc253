"""FAULTS 31, 32, 34, 35, 38: the model, its wrapping, the optimizer or the data are others when a run goes on."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.errors import CheckpointError, RefusedError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def make(folder, model=None, **changes):
    arguments = {
        "optimizer": "adam", "lr": 0.1, "loss": "mse", "seed": 3, "run_dir": folder, "loggers": [], "progress": False, "device": "cpu",
    }  # fmt: skip
    return vd.Trainer(make_model() if model is None else model, **{**arguments, **changes})


def fit(trainer, x=X, y=Y, epochs=2):
    return trainer.fit((x, y), batch_size=4, epochs=epochs)


def last_weights(folder):
    return read_tensors(sorted((folder / "checkpoints").glob("step-*"))[-1])


def test_other_numbers_of_the_same_size_are_refused_or_accepted_by_an_explicit_act(tmp_path):
    fit(make(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}

    with pytest.raises(RefusedError, match=r"data\.content: '[0-9a-f]{16}' -> '[0-9a-f]{16}'.*accept_changes=True"):
        fit(make(tmp_path / "run", resume="auto"), x=X + 1, epochs=3)
    assert {path: path.read_bytes() for path in before} == before

    result = fit(make(tmp_path / "run", resume="auto", accept_changes=True), x=X + 1, epochs=3)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_data_that_are_no_longer_in_memory_are_known_by_their_number_alone(tmp_path):
    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return X[index], Y[index]

    fit(make(tmp_path / "run"))
    trainer = make(tmp_path / "run", resume="auto")
    assert len(trainer.fit(Samples(), batch_size=4, epochs=3).history) == 3


def test_the_same_data_read_anew_are_the_same(tmp_path):
    fit(make(tmp_path / "run"))
    straight = make(tmp_path / "straight")
    fit(straight, epochs=4)
    resumed = make(tmp_path / "run", resume="auto")
    fit(resumed, X.numpy().copy(), Y.numpy().copy(), epochs=4)
    assert all(map(torch.equal, straight.model.parameters(), resumed.model.parameters()))


class Wrapped(nn.Module):
    """What DistributedDataParallel does to the names of its module, without a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPINGS = {
    "bare": lambda module: module,
    "ddp": Wrapped,
    "compiled": compiled,
    "both": lambda m: Wrapped(compiled(m)),
}


@pytest.mark.parametrize("then", WRAPPINGS)
def test_a_run_goes_on_under_any_wrapping_and_is_saved_under_clean_names(tmp_path, then):
    names = set(make_model().state_dict())
    fit(make(tmp_path / "run", WRAPPINGS[then](make_model())))
    assert set(last_weights(tmp_path / "run")) == names
    state = read_state(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1])
    assert set(state["resume"]["optimizers"]["optimizer"]["by_name"]) == {
        name for name, _ in make_model().named_parameters()
    }

    bare = make_model()
    vd.load_model(tmp_path / "run", model=bare, weights="last")
    assert bare[0].weight.equal(last_weights(tmp_path / "run")["0.weight"])


def test_every_wrapping_goes_on_where_another_was(tmp_path):
    straight = make(tmp_path / "straight")
    fit(straight, epochs=5)
    for epochs, wrap in enumerate(WRAPPINGS.values(), 1):
        fit(make(tmp_path / "run", wrap(make_model()), resume="auto"), epochs=epochs)
    resumed = make(tmp_path / "run", resume="auto")
    fit(resumed, epochs=5)
    assert all(map(torch.equal, straight.model.parameters(), resumed.model.parameters()))


def test_weights_alone_may_be_taken_for_a_new_run_and_only_where_they_fit(tmp_path):
    fit(make(tmp_path / "run"))
    before = make_model()
    vd.load_model(tmp_path / "run", model=before, weights="last")
    new = make(tmp_path / "new", before, optimizer="sgd")
    fit(new, epochs=1)

    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    kept = other[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"0\.weight \(4, 3\) -> \(5, 3\)"):
        vd.load_model(tmp_path / "run", model=other, weights="last")
    assert other[0].weight.equal(kept)


def test_a_moved_and_copied_run_directory_goes_on(tmp_path):
    fit(make(tmp_path / "run"))
    os.rename(tmp_path / "run", tmp_path / "größer 2")
    assert len(fit(make(tmp_path / "größer 2", resume="auto"), epochs=3).history) == 3
