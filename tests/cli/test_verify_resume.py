"""`velodrome verify resume RECIPE`: fresh processes, a real SIGKILL, and the name of the first state that differs."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import velodrome as vd
from support.recipes import recipe_text
from velodrome.cli import verify_resume as verb
from velodrome.cli.verify_resume import verify_resume
from velodrome.errors import ArgumentError, RecipeError, VelodromeError
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe
from velodrome.recorded_runs.proof import prove_resume

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is not of this system")

MODULE = """\
import os
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

X = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
VAL = (X[:20] * 1.1, Y[:20])


class Augmented(Dataset):
    "Noise from the generators that a run seeds."

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(16), Y[index]


class Unseeded(Augmented):
    def __init__(self):
        self.generator = torch.Generator()
        self.generator.seed()

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(16, generator=self.generator), Y[index]


class Stream(IterableDataset):
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for index in range(worker.id, 100, worker.num_workers):
            yield X[index], Y[index]


def augmented():
    return Augmented(), VAL


def unseeded():
    return Unseeded(), VAL


def stream():
    return DataLoader(Stream(), batch_size=8, num_workers=2), VAL


def net():
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class Forgetful(nn.Module):
    "Counts its calls in a plain number, and computes something else every third time."

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(16, 3), 0

    def forward(self, x):
        self.calls += self.training
        return self.layer(x * (2.0 if self.calls % 7 > 3 else 1.0))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x):
        if self.training and len(x) != 100:
            raise ZeroDivisionError("the user's own mistake")
        return self.layer(x)
"""

RECIPE = recipe_text(
    model='name = "shelf_for_proofs:net"', data='name = "shelf_for_proofs:augmented"', batch_size=8,
    train='metrics = ["accuracy"]\nclip_norm = 1.0',
    tables='\n[scheduler]\nname = "cosine"\n\n[ema]\ndecay = 0.9\n\n[early_stopping]\nmonitor = "val/loss"\npatience = 50\n',
)  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe and the user's own module, the current folder; temporary files go to another one of ours."""
    (tmp_path / "shelf_for_proofs.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def answer_of(capfd):
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
def test_a_recipe_with_random_augmentation_and_everything_else_is_exact(project, capfd):
    assert verify_resume("mine.toml") == 0

    said = capfd.readouterr().out
    assert "Exact: mine.toml ends the same whether it is killed or not" in said
    # 100 samples in batches of 8 are 13 steps an epoch, and an epoch and a half are 13 + 7.
    assert re.search(r"Steps     20, killed by SIGKILL after the checkpoint of step 1\d and resumed from it", said)
    # Every 2 steps, and after the first epoch, which was the best so far.
    assert "Compared  11 checkpoints, 12 rows" in said
    assert f"torch {torch.__version__}" in said
    assert list((project / "temporary").glob("velodrome-*")) == []
    assert not (project / "runs").exists()


@pytest.mark.slow
def test_an_iterable_dataset_with_workers_is_exact(project, capfd):
    code = verify_resume(
        "mine.toml",
        ["data.name=shelf_for_proofs:stream", "scheduler.name=linear", "scheduler.length=20 steps", "train.epochs=2"],
        json=True,
    )

    answer = answer_of(capfd)
    assert (code, answer["equal"], answer["differences"]) == (0, True, []), answer
    assert answer["steps"] == 2 * (7 + 7)  # two workers with 50 samples each: seven batches of 8, the last of 2


@pytest.mark.slow
def test_a_number_that_the_model_keeps_for_itself_is_found(project, capfd):
    code = verify_resume("mine.toml", ["model.name=shelf_for_proofs:Forgetful"], steps=20, json=True)

    answer = answer_of(capfd)
    assert code == verb.DIFFERENT == 3
    assert not answer["equal"]
    assert not answer["differs_before_the_kill"]
    assert answer["first_step_that_differs"] > answer["resumed_from"]
    assert answer["differences"][0]["text"].startswith("parameter layer.weight: ")
    assert "keeps a number or a list of its own" in answer["causes"][0]


@pytest.mark.slow
def test_a_dataset_with_a_generator_that_nobody_seeds_is_found_and_not_blamed_on_the_resume(project, capfd):
    assert verify_resume("mine.toml", ["data.name=shelf_for_proofs:unseeded"]) == 3

    said = capfd.readouterr().out
    assert "Different: parameter " in said
    assert "It differs at step 2 already, before the kill: the recipe does not give the same numbers twice" in said
    assert "numbers from a generator that no seed reaches" in said


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_own_message(project, capfd):
    with pytest.raises(
        VelodromeError, match=r"The straight run ended with exit code 1: .*the user's own mistake"
    ) as error:
        verify_resume("mine.toml", ["model.name=shelf_for_proofs:Failing"])
    assert error.value.exit_code == 1
    assert list((project / "temporary").glob("velodrome-*")) == []


def test_a_run_that_is_too_short_to_be_killed_is_told(project):
    trainer = vd.Trainer(
        torch.nn.Linear(2, 1), "sgd", lr=0.1, loss="mse", run_dir="done", progress=False, loggers=[], device="cpu", checkpoint=None
    )  # fmt: skip
    trainer.fit((torch.ones(4, 2), torch.ones(4, 1)), steps=2, batch_size=2)
    copy = "import shutil, sys; shutil.copytree('done', sys.argv[1])"  # a whole run at once
    lines = []
    with pytest.raises(VelodromeError, match=r"The run of 2 steps ended 3 times before it could be killed.*--steps 20"):
        prove_resume(lambda folder, name: [sys.executable, "-c", copy, str(folder / name)], say=lines.append)
    assert lines[0] == "1 of 3: a run that nothing disturbs ..."


def test_what_is_wrong_is_refused_before_anything_runs(project):
    with pytest.raises(RecipeError, match=r"optimizer.lr"):
        verify_resume("mine.toml", ["optimizer.lr=-1"])
    with pytest.raises(ArgumentError, match=r"--steps 1 leaves nothing to resume. Give at least 2"):
        verify_resume("mine.toml", steps=1)
    with pytest.raises(
        ArgumentError, match=r"--steps 9 was given together with train.epochs=2. Leave one of the two out"
    ):
        verify_resume("mine.toml", ["train.epochs=2"], steps=9)
    with pytest.raises(ArgumentError, match=r"a clock ends is never twice the same: give train.steps or train.epochs"):
        verify_resume("mine.toml", ["train.seconds=9"])


@pytest.mark.parametrize(
    ("per_epoch", "steps"),
    [(13, 20), (4, 12), (100, 150), (101, 30), (None, 30)],  # 13 + 7; at least 12; 100 + 50; long; unknown
)
def test_the_length_is_an_epoch_and_a_half_where_that_is_cheap(per_epoch, steps):
    assert verb._choose_steps(per_epoch) == steps


def test_the_command_saves_often_and_keeps_all_checkpoints_of_a_small_model(project):
    ready = build(load_recipe("mine.toml", []), say=lambda line: None)
    assert verb._steps_per_epoch(ready) == 13
    command = verb._command("mine.toml", ["train.steps=20"], ready, total=20, processes=1)(Path("x"), "straight")
    assert command[1:6] == ["-m", "velodrome", "train", "mine.toml", "train.steps=20"]
    assert "checkpoint.every=every 2 steps" in command
    assert "checkpoint.keep_last=1000" in command
    assert command[-6:] == ["--name", "straight", "--resume", "auto", "--json", "--quiet"]
