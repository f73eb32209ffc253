from __future__ import annotations

import pytest

from velodrome.errors import RecipeError
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe

CHANGES = ["data.path=mine.csv", "data.train_rows=20", 'model.sizes=["auto",4,1]']
TARGETS = {
    "stray": [*[i % 2 for i in range(29)], 7],
    "yes_no": [i % 2 for i in range(30)],
    "numbers": [i / 3 - 2 for i in range(30)],  # from -2 to 23/3
    "shares": [i / 30 for i in range(30)],
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(target, *overrides):
        rows = [f"{i % 5},{value}" for i, value in enumerate(TARGETS[target])]
        (tmp_path / "mine.csv").write_text("x,y\n" + "\n".join(rows) + "\n")
        return build(load_recipe("diabetes-mlp", [*CHANGES, *overrides]), say=lambda line: None)

    return call


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        (
            "stray",
            [],
            r"'y' holds 3 values \(0: 15 rows, 1: 14 rows, 7: 1 row\), and the loss bce is for two classes\. Correct the "
            r'rows if some are wrong; or use loss\.name="cross_entropy" with 3 outputs',
        ),
        ("stray", ["loss.name=mse"], r'the loss mse is for numbers\. Read the target as numbers with data\.task="regr'),
        (
            "yes_no",
            ["loss.name=cross_entropy"],
            r'wants class indices, .*\. Use data\.task="multiclass" with two outputs',
        ),
        (
            "numbers",
            [],
            r"holds 30 different numbers from -2 to 7\.66667, and the loss bce is for classes\. Use loss\.name",
        ),
        ("numbers", ["loss.name=mse", "model.output=none"], r"the metric accuracy counts .*: train\.metrics=\[\]\."),
    ],
)
def test_loss_or_metric_that_cannot_be_meant_for_the_target_is_refused(make, target, overrides, message):
    with pytest.raises(RecipeError, match=message):
        make(target, *overrides)


@pytest.mark.parametrize(
    ("target", "overrides"),
    [
        ("yes_no", []),
        ("yes_no", ["loss.name=mse"]),
        ("shares", []),  # shares between 0 and 1 are targets of bce too
        ("numbers", ["loss.name=mse", "model.output=none", "train.metrics=[]"]),
        ("stray", ["loss.name=cross_entropy", "model.output=none", 'model.sizes=["auto",3]']),
    ],
)
def test_loss_that_fits_the_target_is_let_through(make, target, overrides):
    assert make(target, *overrides).model is not None
