"""`velodrome replay`: which module made a number that is not finite, from what was kept or from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from support.recipes import NO_PICTURES, recipe_text

MODULE = """\
import torch
from torch import nn


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(96, 4, generator=generator)
    x[70, 0] = 2.0  # the square root below is NaN there
    return (x, (x.sum(1) > 2).long()), (x[:10], (x.sum(1) > 2).long()[:10])


class Roots(nn.Module):
    def forward(self, x):
        return torch.sqrt(1.5 - x)


def net():
    return nn.Sequential(nn.Identity(), nn.Sequential(Roots(), nn.Dropout(0.1)), nn.Linear(4, 2))


class Blows(nn.Module):
    # finite, with an infinite gradient, where the input is 2
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.layer(x)
        return hidden + torch.sqrt((x[:, :1] - 2.0).abs() * hidden.abs())


def net_with_bad_gradient():
    return nn.Sequential(nn.Identity(), Blows())
"""

CHECKPOINTS = """
[checkpoint]
every = "2 steps"
keep_last = 20
"""


@pytest.fixture
def broken(tmp_path, monkeypatch, velodrome):
    """Return a function that trains a recipe until it fails, and returns the run and the error."""
    (tmp_path / "replayed_in_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def train(net="net", train=""):
        text = recipe_text(
            model=f'name = "replayed_in_tests:{net}"', data='name = "replayed_in_tests:data"', train=train, batch_size=8,
            tables=CHECKPOINTS + NO_PICTURES + 'every = "2 steps"\n',
        )  # fmt: skip
        (tmp_path / "mine.toml").write_text(text)
        answer = velodrome("train", "mine.toml", "--name", "broken", "--json", "-q")
        return tmp_path / "runs" / "broken", answer.json.get("error")

    return train


def bad_step(error):
    return int(error["message"].partition("at step ")[2].partition(" ")[0])


def fingerprint(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def replay(velodrome, run, step, *options):
    return velodrome("replay", run, step, "--recipe", "mine.toml", *options)


def test_the_bundle_names_the_module_and_changes_nothing(broken, velodrome):
    run, error = broken()
    assert error["type"] == "NumericsError"
    assert f"velodrome replay {run} {bad_step(error)}" in error["message"]
    before = fingerprint(run)
    answer = replay(velodrome, run, bad_step(error), "--json", "-q")
    assert answer.code == 0, answer.err
    found = answer.json["replay"]
    assert (found["fault"]["module"], found["fault"]["kind"], found["fault"]["num_nan"]) == ("1.0", "output", 1)
    assert (found["step"], found["is_reproduced"], found["loss"]) == (bad_step(error), True, "nan")
    assert 70 in found["samples"]
    assert "nonfinite" in found["origin"]
    assert fingerprint(run) == before


def test_a_checkpoint_brings_the_run_there_exactly(broken, velodrome):
    run, error = broken()
    step = bad_step(error)
    kept = json.loads(next((run / "nonfinite").glob("*/nonfinite.json")).read_text())
    assert step > 2, "the seed must have sample 70 after the first checkpoint"
    shutil.rmtree(run / "nonfinite")
    before = fingerprint(run)
    answer = replay(velodrome, run, step, "--json", "-q")
    assert answer.code == 0, answer.err
    found = answer.json["replay"]
    assert found["fault"]["module"] == "1.0"
    assert (found["epoch"], found["batch"], found["samples"]) == (kept["epoch"], kept["batch_number"], kept["samples"])
    assert found["origin"].endswith(f"step-{(step - 1) // 2 * 2:08d}")
    assert fingerprint(run) == before


def test_a_step_that_was_fine_is_said_to_be(broken, velodrome):
    run, error = broken()
    answer = replay(velodrome, run, 3)
    assert answer.code == 0, answer.err
    assert "Every number of this step is finite." in answer.out
    assert bad_step(error) != 3


def test_a_bad_gradient_is_traced_to_module_and_line(broken, velodrome):
    run, error = broken("net_with_bad_gradient", "clip_norm = 1.0")
    assert "gradient norm became nan" in error["message"]
    answer = replay(velodrome, run, bad_step(error))
    assert answer.code == 0, answer.err
    assert "Not finite first: 1.layer: gradient of the output" in answer.out
    assert "returned nan values" in answer.out
    assert "torch.sqrt((x[:, :1] - 2.0).abs() * hidden.abs())" in answer.out


def test_replay_goes_through_skipped_steps_as_the_run_did(broken, velodrome):
    run, error = broken(train='on_nonfinite = "skip"')
    assert error is None
    skipped = int(next((run / "nonfinite").iterdir()).name.removeprefix("step-"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped_steps"] == 2  # once an epoch
    shutil.rmtree(run / "nonfinite")
    answer = replay(velodrome, run, skipped, "--json", "-q")
    assert answer.json["replay"]["fault"]["module"] == "1.0"
    assert replay(velodrome, run, 22, "--json", "-q").json["replay"]["is_reproduced"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("runs", "1"), 2, "holds no run.json"),
        (("runs/broken", "0"), 2, "STEP"),
        (("runs/broken", "1"), 3, "no checkpoint before step 1"),
        (("runs/broken", "999"), 2, "the run ends after"),
    ],
)
def test_what_cannot_be_replayed_is_refused(broken, velodrome, arguments, code, message):
    run, _ = broken(train='on_nonfinite = "skip"')
    shutil.rmtree(run / "nonfinite")
    answer = velodrome("replay", *arguments, "--recipe", "mine.toml")
    assert answer.code == code
    assert message in answer.err
