"""Raw and averaged weights on the command line: which are measured, and how the others are asked for."""

import json

import pytest


@pytest.fixture
def trained(project, velodrome):
    answer = velodrome("train", "mine.toml", "ema.decay=0.9", "--name", "mine", "--quiet")
    assert answer.code == 0, answer.err
    return project / "runs" / "mine"


def test_eval_measures_the_weights_that_the_run_evaluated_unless_told(trained, velodrome):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    found = {
        kind: velodrome(
            "eval", trained, "--recipe", "mine.toml", "--weights", "last", "--json", *(["--kind", kind] if kind else [])
        ).json
        for kind in ("", "auto", "averaged", "raw")
    }
    assert found[""] == found["auto"] == found["averaged"]
    assert found["auto"]["metrics"]["loss"] == pytest.approx(last["val/loss"], rel=1e-6)
    assert found["raw"]["metrics"]["loss"] != pytest.approx(last["val/loss"], rel=1e-3)
    assert found["auto"]["weights"].endswith("ema.safetensors")
    assert found["raw"]["weights"].endswith("model.safetensors")


def test_train_names_the_file_that_was_evaluated(project, velodrome):
    answer = velodrome("train", "mine.toml", "ema.decay=0.9", "--name", "mine", "--json")
    assert answer.json["files"]["best_weights"].endswith("ema.safetensors")


def test_predict_takes_either(trained, velodrome):
    for kind in ("raw", "averaged"):
        answer = velodrome("predict", trained, "--recipe", "mine.toml", "--out", f"{kind}.csv", "--kind", kind)
        assert answer.code == 0, answer.err
    assert (trained.parent.parent / "raw.csv").read_text() != (trained.parent.parent / "averaged.csv").read_text()


def test_unknown_kind_is_refused(trained, velodrome):
    answer = velodrome("eval", trained, "--kind", "mean")
    assert answer.code == 2
    assert "Invalid value for '--kind'" in answer.err
