"""The main recipe, killed ten times and started again by the same command, ends like the run that nothing disturbed."""

from __future__ import annotations

import csv
import json
import random
import signal
import time

import pytest

from support.forked import start_command_line
from velodrome.recorded_runs.state_comparison import compare_runs

COMMAND = [
    "train", "fashion-mnist-mlp", "data.source=embedded", "train.steps=300", "checkpoint.every=every 20 steps",
    "logging.every=20 steps", "logging.progress=false", "--resume", "auto", "-q", "--name",
]  # fmt: skip
# 8,000 images in batches of 128 are 63 steps an epoch; saves are 20 steps apart.
MOMENTS = ["begin", "save", "run", "run", "save", "begin", "run", "save", "run", "save"]
LIMIT_S = 60
RATES = ("seconds", "samples_per_s")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is not of this system"),
]


def start(folder, name):
    return start_command_line([*COMMAND, name], folder)


def finish(process):
    process.join()
    return process.exitcode


def newest(run):
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def is_saving(run, after):
    """Return whether a checkpoint of a later step is being written."""
    return any(int(path.name.split("-")[2]) > after for path in (run / "checkpoints").glob(".tmp-step-*"))


def kill_at(moment, process, run, dice):
    """Kill a run at a random time while it begins, trains, or saves; return whether it was alive until then."""
    before, end = newest(run), time.monotonic() + LIMIT_S
    if moment == "begin":
        time.sleep(dice.uniform(0.0, 0.3))
    else:
        while process.is_alive() and newest(run) <= before:
            assert time.monotonic() < end
            time.sleep(0.001)
        if moment == "save":
            while process.is_alive() and not is_saving(run, newest(run)):
                time.sleep(0.0002)
            time.sleep(dice.uniform(0.0, 0.01))
        else:
            time.sleep(dice.uniform(0.0, 0.08))
    was_alive = process.is_alive()
    process.kill()
    process.join()
    return was_alive


def curves_of(run):
    """Return what TensorBoard shows: steps and values by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(RATES)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def table_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in RATES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with the undisturbed run and the one that was killed ten times and is finished now."""
    folder, dice = tmp_path_factory.mktemp("kills"), random.Random(0)
    assert finish(start(folder, "undisturbed")) == 0
    killed, alive, restarts = folder / "runs" / "killed", [], []
    for moment in MOMENTS:
        restarts.append(newest(killed))
        alive.append(kill_at(moment, start(folder, "killed"), killed, dice))
    assert alive == [True] * 10, restarts
    assert len(set(restarts)) >= 8, (
        restarts
    )  # all but those that were killed while they began went on from another checkpoint
    assert finish(start(folder, "killed")) == 0
    return folder / "runs"


def test_ten_kills_later_weights_state_rows_and_best_epoch_are_the_same(runs):
    found = compare_runs(runs / "undisturbed", runs / "killed")
    assert [each.text for each in found.differences] == []
    assert found.steps_compared[-2:] == (280, 300)  # the two that stay, beside the best one
    assert (
        found.num_rows == 15 + 5
    )  # one every 20 steps, and one for each epoch of 63 steps, the last of them cut short
    assert json.loads((runs / "killed" / "run.json").read_text())["status"] == "done"


def test_ten_kills_later_curves_and_tables_never_fold_back(runs):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    curves = curves_of(runs / "killed")
    assert curves == curves_of(runs / "undisturbed")
    assert [step for step, _ in curves["Step/loss"]] == list(range(20, 301, 20))
    assert [step for step, _ in curves["Loss/val"]] == [63, 126, 189, 252, 300]
    assert table_of(runs / "killed") == table_of(runs / "undisturbed")
    assert [row["epoch"] for row in table_of(runs / "killed")] == ["1", "2", "3", "4", "5"]


def test_ten_kills_later_nothing_half_written_is_left(runs):
    left = [path.name for path in (runs / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert left == []
