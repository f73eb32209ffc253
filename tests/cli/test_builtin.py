"""Built-in recipes on the data that come along."""

from __future__ import annotations

import csv

import pytest
import torch

from velodrome.recipes.trained_model import load_model


@pytest.mark.slow
def test_mnist_mlp_learns_the_embedded_digits_and_predicts(project, velodrome):
    answer = velodrome("train", "mnist-mlp", "data.source=embedded", "train.epochs=2", "--name", "digits", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val/accuracy"] > 0.8
    # The run's own recipe names no code of the user's, so nothing else has to be given.
    found = velodrome("eval", "runs/digits", "--json").json["metrics"]
    assert found["accuracy"] == pytest.approx(answer.json["best"]["val/accuracy"])
    assert velodrome("predict", "runs/digits").code == 0
    rows = list(csv.DictReader((project / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 2000


def test_fashion_mnist_mlp_dry_run_on_the_embedded_data(project, velodrome):
    answer = velodrome("train", "fashion-mnist-mlp", "data.name=mnist", "data.source=embedded", "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["plan"]["num_parameters"] == 669_706  # 784*512+512 + 512*512+512 + 512*10+10


@pytest.mark.parametrize("recipe", ["mnist-cnn", "fashion-mnist-cnn"])
def test_cnn_recipe_learns_the_embedded_pictures_and_predicts(project, velodrome, recipe):
    # A narrower network and 60 steps: seconds; what the recipe itself reaches stands in benchmarks/records.
    small = ["model.channels=[8,16]", "train.batch_size=64", "optimizer.lr=0.003", "train.steps=60"]
    answer = velodrome("train", recipe, "data.source=embedded", *small, "--name", "pictures", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["step"] == 60
    assert answer.json["metrics"]["val/accuracy"] > 0.7  # chance is 0.1
    found = velodrome("eval", "runs/pictures", "--json").json["metrics"]
    assert found["accuracy"] == pytest.approx(answer.json["best"]["val/accuracy"])
    assert velodrome("predict", "runs/pictures").code == 0
    assert len(list(csv.DictReader((project / "predictions.csv").read_text().splitlines()))) == 2000


def test_char_gpt_learns_more_than_chance_and_comes_back(project, velodrome):
    small = ["model.width=32", "model.num_layers=1", "data.window=32", "train.steps=100", "optimizer.lr=0.01"]
    answer = velodrome("train", "char-gpt", *small, "--name", "letters", "--json")
    assert answer.code == 0, answer.err
    # 75 characters: chance is ln 75 = 4.3 nats; knowing how frequent each is gives 3.0.
    assert answer.json["metrics"]["val/loss"] < 2.95
    found = velodrome("eval", "runs/letters", "--json").json["metrics"]
    assert found["loss"] == pytest.approx(answer.json["best"]["val/loss"])
    model = load_model("runs/letters")
    scores = model(torch.zeros(1, 5, dtype=torch.int64))
    assert scores.shape == (1, 75, 5)
    # A table of classes is no form for a text: the shape is said, and nothing is written.
    refused = velodrome("predict", "runs/letters")
    assert refused.code == 2
    assert "must be (N, classes)" in refused.err
    assert not (project / "predictions.csv").exists()


def test_char_gpt_dry_run_counts_the_recipe_as_it_stands(project, velodrome):
    answer = velodrome("train", "char-gpt", "--dry-run", "--json")
    assert answer.code == 0, answer.err
    # 6,565 windows of 64 make 411 batches of 16; 75 characters and 64 positions of 128 numbers; two blocks; a norm.
    block = 4 * 128 + 128 * 384 + 384 + 128 * 128 + 128 + 2 * (128 * 512) + 512 + 128
    assert answer.json["plan"]["num_parameters"] == (75 + 64) * 128 + 2 * block + 2 * 128
    assert answer.json["plan"]["steps_per_epoch"] == 411
    assert answer.json["plan"]["first_step"]["loss"] == pytest.approx(4.3, abs=0.2)  # ln 75


@pytest.fixture
def table(project):
    """A table of 60 rows with one category, whose target is `x > 0`."""
    rows = [f"{(i % 7) - 3.5},{'red' if i % 2 else 'blue'},{int((i % 7) - 3.5 > 0)}" for i in range(60)]
    (project / "mine.csv").write_text("x,colour,yes\n" + "\n".join(rows) + "\n")
    (project / "new.csv").write_text("x,colour\n-3,red\n3,blue\n")
    return project


def test_diabetes_mlp_takes_any_table_and_predicts_new_rows(table, velodrome):
    changes = ["data.path=mine.csv", "data.target=yes", 'data.categorical=["colour"]', "data.train_rows=50"]
    answer = velodrome(
        "train", "diabetes-mlp", *changes, "train.epochs=30", "optimizer.lr=0.05", "--name", "t", "--json"
    )
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val/accuracy"] == 1.0
    assert velodrome("predict", "runs/t", "--data", "new.csv", "--out", "p.csv").code == 0
    rows = list(csv.DictReader((table / "p.csv").read_text().splitlines()))
    assert [row["predicted"] for row in rows] == ["0", "1"]
    assert velodrome("eval", "runs/t").code == 0
    on_all_rows = velodrome("eval", "runs/t", "--data", "mine.csv", "--json").json["metrics"]
    assert on_all_rows["accuracy"] == 1.0
