from __future__ import annotations

import pytest
import torch

import velodrome as vd
from velodrome.checkpoint.compare import KINDS, compare_checkpoints, compare_values, is_of_the_clock
from velodrome.checkpoint.store import CheckpointStore

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


def train(folder, *, lr=0.1, steps=3, **arguments):
    """Return the last checkpoint of three steps with Adam; two runs of it are equal."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5), torch.nn.Linear(2, 1)
    )
    trainer = vd.Trainer(
        model, "adam", lr=lr, loss="mse", seed=3, run_dir=folder, loggers=[], progress=False, device="cpu", ema=vd.EMA(0.5),
        **arguments,
    )  # fmt: skip
    trainer.fit((X, Y), batch_size=4, steps=steps)
    return folder / "checkpoints" / f"step-{steps:08d}"


def save_again(source, folder, change):
    """Save a checkpoint again with one state changed: what `change` does to its groups of tensors and its state."""
    from velodrome.checkpoint.manifest import read_manifest
    from velodrome.checkpoint.read import read_state, read_tensors

    manifest = read_manifest(source)
    groups = [name.removesuffix(".safetensors") for name in manifest.files if name.endswith(".safetensors")]
    tensors = {group: dict(read_tensors(source, group)) for group in groups}
    state = read_state(source)
    change(tensors, state)
    return CheckpointStore(folder, run_id=manifest.run_id).save(manifest.step, tensors, state)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "a")


def test_compare_checkpoints_of_two_equal_runs_finds_nothing_although_their_clocks_differ(checkpoint, tmp_path):
    other = train(tmp_path / "b")
    assert compare_checkpoints(checkpoint, other) == []


def add(amount, index=0):
    def change(tensor):
        new = tensor.clone()
        new.view(-1)[index] += amount
        return new

    return change


def changed(group, ending, edit):
    def change(tensors, state):
        (name,) = [name for name in tensors[group] if name.endswith(ending)]
        tensors[group][name] = edit(tensors[group][name])

    return change


def set_in(*path, value):
    def change(tensors, state):
        place = state
        for key in path[:-1]:
            place = place[key]
        assert place[path[-1]] != value
        place[path[-1]] = value

    return change


def set_python_state(tensors, state):
    """Change what Python's generator keeps for its next normal number; each process has a state of its own."""
    resume = state["resume"]
    (resume["ranks"][0] if "ranks" in resume else resume)["random"]["python"]["gauss"] = 0.5


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (changed("model", "0.weight", add(0.5)), "parameter", "parameter 0.weight: 1 of 6 elements differs, the largest difference is 0.5"),
        (changed("model", "1.running_mean", add(1)), "buffer", "buffer or frozen parameter 1.running_mean: 1 of 2 elements differs"),
        (changed("ema", "3.bias", add(2.0)), "average", "average of 3.bias: 1 of 1 elements differs, the largest difference is 2"),
        (changed("optimizer", "3.bias/exp_avg", add(1.0)), "optimizer", "optimizer's exp_avg of 3.bias: 1 of 1 elements"),
        (changed("rng-rank0", "random/torch", add(1)), "random state", "random state of torch: differs"),
        (changed("rng-rank0", "numpy/words", add(1)), "random state", "random state of NumPy: differs"),
        (set_python_state, "random state", "random state of Python: differs"),
        (set_in("resume", "updates", "optimizer", "schedule", value={"kind": "x"}), "schedule", "schedule updates.optimizer.schedule"),
        (set_in("resume", "updates", "optimizer", "scale", value=2.0), "loss scale", "updates.optimizer.scale: 1.0 against 2.0"),
        (set_in("resume", "position", "loops_done", value=7), "position", "position position.loops_done"),
        (set_in("resume", "callbacks", value={"EarlyStopping-0": {"bad": 1}}), "callback", "callbacks.EarlyStopping-0: is in the second"),
        (set_in("resume", "keeping", "best", value=None), "best epoch", "best epoch keeping.best"),
        (set_in("progress", "samples_done", value=1), "counter", "counter progress.samples_done: 12 against 1"),
        (lambda tensors, state: state.update(new_thing=1), "other", "new_thing: is in the second only"),
    ],
)  # fmt: skip
def test_compare_checkpoints_names_the_state_that_differs(checkpoint, tmp_path, change, kind, text):
    (found,) = compare_checkpoints(checkpoint, save_again(checkpoint, tmp_path / "b", change))
    assert found.kind == kind
    assert text in found.text


def test_compare_checkpoints_names_causes_before_what_follows_from_them(checkpoint, tmp_path):
    def change(tensors, state):
        for each in (changed("optimizer", "0.weight/exp_avg", add(1)), changed("model", "0.bias", add(1)),
                     changed("rng-rank0", "random/torch", add(1))):  # fmt: skip
            each(tensors, state)

    found = compare_checkpoints(checkpoint, save_again(checkpoint, tmp_path / "b", change))
    assert [each.kind for each in found] == ["random state", "parameter", "optimizer"]
    assert [KINDS.index(each.kind) for each in found] == sorted(KINDS.index(each.kind) for each in found)


def test_compare_checkpoints_tells_a_group_that_only_one_has(checkpoint, tmp_path):
    def change(tensors, state):
        del tensors["callbacks"]

    (found,) = compare_checkpoints(checkpoint, save_again(checkpoint, tmp_path / "b", change))
    assert found.text == "callbacks.safetensors is in the first checkpoint only"


def test_compare_checkpoints_passes_over_times(checkpoint, tmp_path):
    def change(tensors, state):
        state["progress"]["seconds"] += 100
        state["resume"]["journal_bytes"] += 5

    assert compare_checkpoints(checkpoint, save_again(checkpoint, tmp_path / "b", change)) == []


def test_compare_values_says_shape_and_dtype_and_takes_nan_for_equal():
    nan = torch.tensor([1.0, float("nan")])
    assert compare_values(nan, nan.clone()) == ""
    assert compare_values(nan, torch.tensor([1.0, 2.0])).startswith("1 of 2 elements differs")
    assert compare_values(torch.zeros(2), torch.zeros(3)) == "(2,) torch.float32 against (3,) torch.float32"
    assert compare_values(torch.zeros(2), torch.zeros(2).double()) == "(2,) torch.float32 against (2,) torch.float64"
    assert compare_values(torch.tensor([1, 5, 9]), torch.tensor([1, 6, 7])) == (
        "2 of 3 elements differ, the largest difference is 2"
    )
    assert compare_values(torch.tensor([True, False]), torch.tensor([True, True])).startswith("1 of 2 elements differs")


def test_is_of_the_clock_takes_units_for_times_and_leaves_values_of_the_user():
    assert is_of_the_clock("samples_per_s")
    assert is_of_the_clock("save_ms")
    assert not is_of_the_clock("train/seconds")
    assert not is_of_the_clock("loss")
