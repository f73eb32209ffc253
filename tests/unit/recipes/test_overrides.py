from __future__ import annotations

import pytest

from velodrome.recipes.overrides import apply_overrides, parse_override
from velodrome.recipes.problems import Problem

TABLES = {
    "model": {"name": "mlp", "sizes": [4, 2]},
    "optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 0.99]},
    "train": {"epochs": 5},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer.lr=0.01", 0.01),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr = 1", 1),
        ("optimizer.name=sgd", "sgd"),
        ('optimizer.name="sgd"', "sgd"),
        ("model.name=my.models:Net", "my.models:Net"),
        ("data.path=a=b.csv", "a=b.csv"),
        ("data.path=", ""),
        ("data.path=2024-01-01", "2024-01-01"),
        ("train.shuffle=false", False),
        ('train.metrics=["accuracy","top5"]', ["accuracy", "top5"]),
        ("model.sizes=[784,64,10]", [784, 64, 10]),
        ("data.path=x\n[train]\nepochs=1", "x\n[train]\nepochs=1"),
    ],
)
def test_parse_override_reads_toml_and_bare_words(text, value):
    parsed = parse_override(text)
    assert isinstance(parsed, tuple)
    assert parsed[1] == value
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("optimizer.lr", "is not key=value"),
        ("=3", "is not key=value"),
        ("epochs=3", "Did you mean train.epochs?"),
        ("every=3", "Did you mean ema.every, checkpoint.every or logging.every?"),
        ("train..epochs=3", "does not name a table and a field"),
        ("model.sizes=[784,64", "is not a TOML value"),
    ],
)
def test_parse_override_unreadable_says_how_to_write_it(text, rule):
    problem = parse_override(text)
    assert isinstance(problem, Problem)
    assert rule in str(problem)
    assert "[command line: " in str(problem)


def test_apply_overrides_leaves_the_tables_given_alone():
    result, origins, problems = apply_overrides(TABLES, ["optimizer.lr=1.0"], file="run.toml")
    assert (TABLES["optimizer"]["lr"], result["optimizer"]["lr"], problems) == (0.1, 1.0, [])
    assert (origins.of("optimizer.lr"), origins.of("optimizer.name")) == ("command line", "run.toml")


def test_apply_overrides_new_length_takes_the_place_of_the_old():
    result, _, _ = apply_overrides(TABLES, ["train.steps=100"], file="run.toml")
    assert result["train"] == {"steps": 100}


def test_apply_overrides_new_name_drops_the_old_ones_arguments_but_keeps_lr():
    result, _, _ = apply_overrides(TABLES, ["optimizer.name=sgd", "model.name=my:Net"], file="run.toml")
    assert result["optimizer"] == {"name": "sgd", "lr": 0.1}
    assert result["model"] == {"name": "my:Net"}


def test_apply_overrides_same_name_keeps_the_arguments():
    result, _, _ = apply_overrides(TABLES, ["model.name=mlp"], file="run.toml")
    assert result["model"] == {"name": "mlp", "sizes": [4, 2]}


def test_apply_overrides_into_a_value_is_a_problem():
    _, _, problems = apply_overrides({"train": 3}, ["train.epochs=1"], file="run.toml")
    assert "goes into train, which is not a table" in str(problems[0])
