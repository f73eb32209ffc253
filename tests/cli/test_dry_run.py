"""Preflight: `velodrome train RECIPE --dry-run` does everything once, says what it found, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest
import torch

Usage = namedtuple("Usage", "total used free")

STUBBORN = """

class Forgetful(nn.Linear):
    '''Does not take back what it gave.'''

    def load_state_dict(self, state, *args, **kwargs):
        return super().load_state_dict({**state, "bias": state["bias"] + 1}, *args, **kwargs)

    def _load_from_state_dict(self, state, prefix, *args, **kwargs):
        state[prefix + "bias"] = state[prefix + "bias"] + 1
        return super()._load_from_state_dict(state, prefix, *args, **kwargs)


def forgetful():
    return nn.Sequential(nn.Flatten(), Forgetful(16, 3))


class Odd(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "odd": object()}


def batches():
    x = torch.rand(8, 16)
    return iter([(x, torch.zeros(8, dtype=torch.int64))]), None
"""


@pytest.fixture
def project(project):
    with open(project / "shelf_for_cli_tests.py", "a") as module:
        module.write(STUBBORN)
    return project


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_dry_run_trains_evaluates_saves_loads_and_leaves_nothing(project, velodrome):
    before = files_below(project)
    answer = velodrome("train", "mine.toml", "--dry-run")
    assert answer.code == 0, answer.err
    assert files_below(project) == before
    for row in ("First step  ", "First evaluation batch", "Checkpoint  ", "Disk  ", "Time  "):
        assert row in answer.out
    assert "saved, and loaded: every number came back" in answer.out
    # 163 weights with two numbers of Adam's each are 1956 bytes; 2 last + 1 best + 1 being written.
    assert "4 checkpoints of " in answer.out


def test_dry_run_leaves_an_existing_runs_folder_as_it_is(project, velodrome):
    assert velodrome("train", "mine.toml", "--name", "first", "-q").code == 0
    before = files_below(project)
    assert velodrome("train", "mine.toml", "--dry-run").code == 0
    assert files_below(project) == before
    again = velodrome("train", "mine.toml", "--name", "second", "--json").json["metrics"]
    first = velodrome("train", "mine.toml", "--name", "third", "--json").json["metrics"]
    assert again["val/loss"] == first["val/loss"]


def test_dry_run_json_has_the_numbers(project, velodrome):
    plan = velodrome("train", "mine.toml", "train.epochs=3", "--dry-run", "--json").json["plan"]
    assert plan["checkpoints_kept"] == 4
    assert plan["needed_bytes"] == 4 * plan["checkpoint_bytes"]
    assert plan["checkpoint_bytes"] > 3 * 4 * 163  # weights and two moments, in float32
    assert plan["free_bytes"] == pytest.approx(shutil.disk_usage(project).free, rel=0.2)
    assert plan["not_resumable"] is None
    # 12 steps, 3 evaluations of a batch, 3 saves
    assert plan["seconds"] >= 12 * plan["step_s"] + 3 * plan["save_s"] > 0


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (["checkpoint.keep_last=5", "checkpoint.keep_best=3"], 9),
        (["checkpoint.keep_best=0"], 3),
        (["checkpoint.every=never", "checkpoint.keep_best=0"], 1),
    ],
)
def test_dry_run_counts_the_checkpoints_that_are_kept(project, velodrome, changes, kept):
    assert velodrome("train", "mine.toml", *changes, "--dry-run", "--json").json["plan"]["checkpoints_kept"] == kept


def test_average_of_the_weights_is_counted(project, velodrome):
    sizes = [
        velodrome("train", "mine.toml", *changes, "--dry-run", "--json").json["plan"]["checkpoint_bytes"]
        for changes in ([], ["ema.decay=0.9"])
    ]
    assert sizes[1] - sizes[0] > 4 * 163


def test_dry_run_looks_at_the_volume_of_the_run_and_says_what_is_missing(project, velodrome, monkeypatch):
    """The volume of the run directory, also through a symbolic link, and not that of the current folder."""
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    (project / "linked").symlink_to(elsewhere)
    real = shutil.disk_usage

    def usage(path):
        return Usage(10**9, 10**9, 1000) if os.path.realpath(path) == str(elsewhere.resolve()) else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    for out in ("elsewhere", "linked", "linked/deep/er"):
        answer = velodrome("train", "mine.toml", "--dry-run", "--out", out)
        assert answer.code == 1, answer
        assert "has 1.0 kB free, and 4 checkpoints of about" in answer.err
        assert "keep fewer (keep_last, keep_best), or choose a run directory on another volume" in answer.err
    assert velodrome("train", "mine.toml", "--dry-run").code == 0
    assert list(elsewhere.iterdir()) == []


def test_dry_run_refuses_a_folder_that_cannot_be_written(project, velodrome, monkeypatch):
    import tempfile

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)  # the tests may run as root, who may write anywhere
    answer = velodrome("train", "mine.toml", "--dry-run", "--out", "out")
    assert (answer.code, "Permission denied" in answer.err, "--out" in answer.err) == (2, True, True)


def test_dry_run_finds_a_model_that_does_not_come_back(project, velodrome):
    changes = ["model.name=shelf_for_cli_tests:forgetful", "--dry-run"]
    text = (
        (project / "mine.toml")
        .read_text()
        .replace('name = "mlp"\nsizes = ["auto", 8, 3]', 'name = "shelf_for_cli_tests:forgetful"')
    )
    (project / "own.toml").write_text(text)
    before = files_below(project)
    answer = velodrome("train", "own.toml", *changes[1:])
    assert answer.code == 3, answer
    assert "1.bias came back from a checkpoint with other values" in answer.err
    assert files_below(project) == before


def test_dry_run_says_when_a_run_could_not_go_on(project, velodrome):
    (project / "own.toml").write_text(
        (project / "mine.toml").read_text().replace('"adam"', '"shelf_for_cli_tests:Odd"')
    )
    answer = velodrome("train", "own.toml", "--dry-run")
    assert answer.code == 0, answer.err
    assert "but a run cannot go on from it: " in answer.out


def test_dry_run_goes_together_with_out_of_memory_and_accumulation(project, velodrome):
    changes = [
        "train.on_oom=split",
        "train.accumulate=2",
        "train.precision=bf16",
        "scheduler.name=cosine",
        "early_stopping.patience=3",
    ]
    answer = velodrome("train", "mine.toml", *changes, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["plan"]["tables"]["train"]["on_oom"] == "split"
    assert answer.json["plan"]["total_steps"] == 4  # 4 batches of 32, two an update, 2 epochs


def test_data_that_can_be_read_once_are_not_tried(project, velodrome):
    text = (
        (project / "mine.toml")
        .read_text()
        .replace("shelf_for_cli_tests:shapes", "shelf_for_cli_tests:batches")
        .replace('"auto"', "16")
    )
    (project / "own.toml").write_text(text)
    answer = velodrome("train", "own.toml", "--dry-run")
    assert answer.code == 0, answer.err
    assert "not tried: the data can be read only once" in answer.out
    assert "Checkpoint  " not in answer.out


def test_a_real_run_warns_at_its_start_when_its_checkpoints_will_not_fit(project, velodrome, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 5000))
    answer = velodrome("train", "mine.toml", "--name", "tight")
    assert answer.code == 0, answer.err  # the files are small; who says that the estimate is right
    said = (project / "runs" / "tight" / "log.txt").read_text()
    # 163 weights in float32 and two moments of Adam's: 163 * 4 * 3 = 1956 bytes.
    assert "has 5.0 kB free, and 4 checkpoints of about 2.0 kB need 7.8 kB" in said


def test_a_real_run_with_room_says_nothing(project, velodrome):
    assert velodrome("train", "mine.toml", "--name", "roomy").code == 0
    assert "checkpoints of about" not in (project / "runs" / "roomy" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (lambda p: torch.optim.RMSprop(p, centered=True), 2),
        (lambda p: torch.optim.Adadelta(p), 2),
        (lambda p: torch.optim.Adagrad(p), 1),
    ],
)
def test_estimate_before_the_first_step_is_what_is_kept_after_it(optimizer, copies):
    from velodrome.run.room import _state_bytes

    model = torch.nn.Linear(1000, 1)
    made = optimizer(model.parameters())
    before = _state_bytes(made)
    model(torch.ones(1, 1000)).sum().backward()
    made.step()
    assert before in (copies * 4 * 1001, _state_bytes(made))
    assert _state_bytes(made) == pytest.approx(copies * 4 * 1001, abs=64)  # and counters
