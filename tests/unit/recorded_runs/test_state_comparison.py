from __future__ import annotations

import json
import shutil

import pytest
import torch

import velodrome as vd
from velodrome.errors import CheckpointError
from velodrome.recorded_runs.state_comparison import compare_rows, compare_runs

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


class Counting(torch.nn.Module):
    """Keeps a number that is in no state_dict, and that decides what it computes."""

    def __init__(self, start):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls = torch.nn.Linear(3, 1), start

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (1 + 0.01 * (self.calls > 4))


def train(folder, *, start=0, every="every 2 steps", steps=10):
    trainer = vd.Trainer(
        Counting(start), "adam", lr=0.1, loss="mse", seed=3, run_dir=folder, loggers=[], progress=False, device="cpu",
        checkpoint=vd.Checkpointing(every=every, keep_last=100), log_every="2 steps",
    )  # fmt: skip
    trainer.fit((X, Y), batch_size=4, steps=steps)
    return folder


def test_compare_runs_of_two_equal_runs_compares_all_and_finds_nothing(tmp_path):
    found = compare_runs(train(tmp_path / "a"), train(tmp_path / "b"))
    assert found.differences == ()
    assert found.step is None
    assert found.steps_compared == (2, 4, 5, 6, 8, 10)  # an epoch is 5 steps, and the first was the best so far
    assert found.num_rows == 7  # five of steps, two of epochs


def test_compare_runs_names_the_first_step_and_the_state(tmp_path):
    # The second begins with one call behind it, so its fifth call is its fourth step.
    found = compare_runs(train(tmp_path / "a"), train(tmp_path / "b", start=1))
    assert found.step == 4
    assert found.steps_compared == (2, 4)
    assert found.differences[0].text.startswith("parameter layer.weight: 3 of 3 elements differ")
    assert found.differences[-1].kind == "best epoch"
    (row,) = [each for each in found.differences if each.kind == "row"]
    assert row.text.startswith("row 2 of metrics.jsonl (step, step 4): train/loss ")


def test_compare_runs_notices_a_run_that_ended_elsewhere(tmp_path):
    found = compare_runs(train(tmp_path / "a"), train(tmp_path / "b", steps=8))
    texts = [each.text for each in found.differences]
    assert "the last checkpoints are of step 10 and 8" in texts


def test_compare_runs_without_a_common_step_is_refused(tmp_path):
    a = train(tmp_path / "a")
    b = shutil.copytree(a, tmp_path / "b")
    for path in (b / "checkpoints").glob("step-*"):
        shutil.rmtree(path)
    with pytest.raises(
        CheckpointError, match=r"of the steps \[2, 4, 5, 6, 8, 10\] and .* of \[\]: none is of the same step"
    ):
        compare_runs(a, b)


def test_compare_rows_tells_the_first_row_that_differs_and_missing_rows():
    a = [{"kind": "step", "step": 1, "train/loss": 1.0, "seconds": 1.0}, {"kind": "step", "step": 2, "train/loss": 2.0}]
    b = json.loads(json.dumps(a))
    b[0]["seconds"] = 9.0
    assert compare_rows(a, b) == []
    b[1]["train/loss"] = 2.5
    assert [each.text for each in compare_rows(a, b)] == [
        "row 2 of metrics.jsonl (step, step 2): train/loss 2.0 against 2.5"
    ]
    assert [each.text for each in compare_rows(a, a[:1])] == ["metrics.jsonl has 2 rows against 1"]
    assert "val/f1 0.5 against None" in compare_rows([{**a[0], "val/f1": 0.5}], a[:1])[0].text
