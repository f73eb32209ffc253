"""Built-in recipes on the data that come along."""

from __future__ import annotations

import csv

import pytest


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
