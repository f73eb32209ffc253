"""Bundles: whole or absent, tensors and JSON only, inside of the run's folder, and refused when they are not ours."""

import json

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.files import Files
from velodrome.errors import ArgumentError, CheckpointError
from velodrome.nonfinite.bundle import read_bundle, write_bundle

FACTS = {"step": 12, "epoch": 1, "samples": [3, 1], "first": "the loss itself"}


BATCH = torch.ones(2, 3), torch.zeros(2)


def write(folder, batch=BATCH, **arguments):
    settings = {"batch": batch, "model": nn.Linear(3, 1), "random": {}}
    return write_bundle(folder, FACTS, **{**settings, **arguments})


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 3), torch.tensor([1, 2])),
        {"ids": torch.arange(4), "mask": torch.tensor([True, False]), "names": ["a", "b"]},
        [torch.ones(1), {"deep": (torch.zeros(2), 3, None)}],
    ],
)
def test_a_batch_comes_back_as_it_was(tmp_path, batch):
    found = read_bundle(write(tmp_path, batch)).batch
    assert str(found) == str(batch)


def test_a_batch_that_no_file_can_hold_is_left_out_and_replay_says_why(tmp_path):
    path = write(tmp_path, (torch.ones(2), object()))
    assert read_bundle(path).batch is None
    with pytest.raises(ArgumentError, match="holds no batch.*batch/1 is a object"):
        vd.replay(path, nn.Linear(3, 1), loss="mse", device="cpu")


def test_weights_of_another_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="weight"):
        vd.replay(write(tmp_path), nn.Linear(4, 1), loss="mse", device="cpu")


def test_replay_changes_neither_gradients_nor_generators(tmp_path):
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))
    path = write(tmp_path, (torch.ones(2, 3), torch.zeros(2, 1)), model=model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = vd.replay(path, model, loss="mse", device="cpu")
    assert found.fault is None
    assert str(found).endswith("Every number of this step is finite.")
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.grad is None


def test_no_pickle_is_written_and_names_come_from_the_step_alone(tmp_path):
    path = write(tmp_path)
    assert path == tmp_path / "nonfinite" / "step-00000012"
    assert {each.suffix for each in path.iterdir()} == {".json", ".safetensors"}
    assert [each.name for each in tmp_path.iterdir()] == ["nonfinite"]


def test_a_disk_that_fails_leaves_no_bundle_that_could_be_taken_for_one(tmp_path):
    class Full(Files):
        def __init__(self, after):
            self.left = after

        def write(self, descriptor, data):
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return super().write(descriptor, data)

    for after in range(4):
        with pytest.raises(OSError, match="No space"):
            write(tmp_path, files=Full(after))
        assert not list((tmp_path / "nonfinite").glob("step-*"))
    assert write(tmp_path, files=Full(4)) is not None


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="holds no nonfinite.json"):
        read_bundle(tmp_path)
    path = write(tmp_path)
    facts = json.loads((path / "nonfinite.json").read_text())
    for change, message in (({"format": 9}, "not in format 1"), ({"step": "../../x"}, "not in format 1")):
        (path / "nonfinite.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(CheckpointError, match=message):
            read_bundle(path)
    (path / "nonfinite.json").write_text(" " * 10_000_001)
    with pytest.raises(CheckpointError, match="larger than"):
        read_bundle(path)
    (path / "nonfinite.json").write_text(json.dumps(facts))
    (path / "batch.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_bundle(path)
