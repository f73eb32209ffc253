"""Trained runs on tables: rows are prepared as the training rows were, or the verb refuses."""

from __future__ import annotations

import json

import pytest

CHANGES = [
    "data.path=mine.csv", "data.target=yes", 'data.categorical=["colour"]', "data.train_rows=50", "train.epochs=1",
    "logging.tensorboard=false", "logging.curves=false",
]  # fmt: skip


def write_table(path, num=60, shift=0.0, colours=("blue", "red"), targets=lambda x: int(x > 0)):
    rows = []
    for i in range(num):
        x = (i % 7) - 3.5
        rows.append(f"{x + shift},{colours[i % len(colours)]},{targets(x)}")
    path.write_text("x,colour,yes\n" + "\n".join(rows) + "\n")


@pytest.fixture
def run(project, velodrome):
    """A run on a table of 60 rows with one category, whose target is `x > 0`."""
    write_table(project / "mine.csv")
    answer = velodrome("train", "diabetes-mlp", *CHANGES, "--name", "t", "-q")
    assert answer.code == 0, answer.err
    return project / "runs" / "t"


@pytest.mark.parametrize("verb", ["eval", "predict"])
@pytest.mark.parametrize("override", ["data.path=new.csv", "data.train_rows=3", 'data.categorical=["x"]'])
def test_data_override_of_a_table_run_is_refused_and_names_data(run, velodrome, verb, override):
    write_table(run.parents[1] / "new.csv", num=12, shift=100)
    answer = velodrome(verb, run, override)
    assert answer.code == 2
    assert "give the table with --data" in answer.err
    assert ("--data new.csv" in answer.err) == (override == "data.path=new.csv")


@pytest.mark.parametrize("verb", ["eval", "predict"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "is missing or holds nothing"),
        ({}, "cannot be read"),
        ({"class_names": [], "data": {}}, "is missing or holds nothing"),
        ({"class_names": [], "data": {"kind": "csv"}}, "holds no 'numeric'"),
        ("no deviation", "no mean and deviation of the column 'x'"),
        ("one category less", "prepares 2 inputs where the model takes 3"),
    ],
)
def test_table_run_without_its_preprocessing_is_refused(run, velodrome, verb, damage, message):
    file = run / "preprocessing.json"
    notes = json.loads(file.read_text())
    if damage is None:
        file.unlink()
    else:
        if damage == "no deviation":
            del notes["data"]["numeric"]["x"]["std"]
        elif damage == "one category less":
            del notes["data"]["categorical"]["colour"][0]
        file.write_text(json.dumps(damage if isinstance(damage, dict) else notes))
    answer = velodrome(verb, run)
    assert (answer.code, message in answer.err) == (3, True), answer.err


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_table_that_was_changed_since_training_is_refused(run, velodrome, verb):
    assert velodrome(verb, run).code == 0
    write_table(run.parents[1] / "mine.csv", shift=5)
    answer = velodrome(verb, run, *(["--out", "other.csv"] if verb == "predict" else []))
    assert answer.code == 2
    assert "this is not the table that the run was trained on; its 'numeric' differs" in answer.err


def test_unseen_category_of_the_validation_rows_is_told_while_training(project, velodrome):
    write_table(project / "mine.csv")
    with (project / "mine.csv").open("a") as file:
        file.write("1.5,green,1\n")
    answer = velodrome("train", "diabetes-mlp", *CHANGES)
    assert answer.code == 0, answer.err
    assert "has values that training never saw (green)" in answer.out
