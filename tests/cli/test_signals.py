"""`velodrome train` that is told to stop: its exit code, its records, and the command that goes on."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from support.programs import environment
from velodrome.checkpoint.read import read_tensors

pytestmark = pytest.mark.slow

EPOCHS = 80
SLOW_LOSS = """\
import time
from torch.nn import functional

def loss(output, target):
    time.sleep(0.05)
    return functional.cross_entropy(output, target)
"""


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def last_weights(run):
    return read_tensors(sorted((run / "checkpoints").glob("step-*"))[-1])


def record_of(run):
    return json.loads((run / "run.json").read_text())


def start(project, *arguments):
    """Start the command in a process of its own."""
    command = ["train", "mine.toml", f"train.epochs={EPOCHS}", "--name", "run", *arguments]
    code = f"from velodrome.cli.main import main; main({command!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(project),
    )  # fmt: skip


def wait_for_rows(process, run, number=5):
    path, end = run / "metrics.jsonl", time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def straight(project, velodrome):
    """A run that nothing disturbed."""
    answer = velodrome("train", "mine.toml", f"train.epochs={EPOCHS}", "--name", "straight", "-q")
    assert answer.code == 0, answer.err
    return project / "runs" / "straight"


def assert_goes_on(project, velodrome, command, straight):
    """Do what the last line says, and compare with the undisturbed run."""
    first, verb, *arguments = shlex.split(command)
    assert (first, verb) == ("velodrome", "resume")
    answer = velodrome(verb, *arguments, "-q")
    assert answer.code == 0, answer.err
    run = project / "runs" / "run"
    assert record_of(run)["status"] == "done"
    weights, others = last_weights(run), last_weights(straight)
    assert all(weights[name].equal(others[name]) for name in others)
    assert rows_of(run) == rows_of(straight)


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGINT, 130, "The run was interrupted."),
        (signal.SIGTERM, 143, "The run was told to end."),
        (signal.SIGUSR1, 143, "The run was told to end."),
    ],
)
def test_a_signal_saves_the_run_and_the_last_line_says_how_to_go_on(project, velodrome, straight, number, code, reason):
    process, run = start(project), project / "runs" / "run"
    wait_for_rows(process, run)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code
    record = record_of(run)
    assert (record["status"], record["stop_reason"]) == ("stopped", reason)
    assert 0 < record["saved_step"] == record["progress"]["steps_done"] < 4 * EPOCHS
    *_, where, command = err.splitlines()
    assert where.startswith(f"{number.name}: stopped after step {record['saved_step']:,}, in epoch ")
    assert where.endswith(f"; saved in {run}.")
    assert command == "Go on with: velodrome resume runs/run --recipe runs/run/recipe.toml"
    assert "Traceback" not in err
    assert_goes_on(project, velodrome, command.removeprefix("Go on with: "), straight)


@pytest.mark.parametrize("how", ["flag", "job"])
def test_a_deadline_ends_with_143_and_json_names_the_command(project, velodrome, straight, how, monkeypatch):
    command = ["train", "mine.toml", f"train.epochs={EPOCHS}", "--name", "run", "--json"]
    if how == "flag":
        answer = velodrome(*command, "--stop-after", "0.2s")
    else:
        (project / "slow_loss.py").write_text(SLOW_LOSS)
        (project / "mine.toml").write_text(
            (project / "mine.toml").read_text().replace("cross_entropy", "slow_loss:loss")
        )
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3))
        answer = velodrome(*command)
        monkeypatch.delenv("SLURM_JOB_END_TIME")
    error = json.loads(answer.out)["error"]

    assert answer.code == 143
    assert (error["type"], error["exit_code"]) == ("Stopped", 143)
    run = project / "runs" / "run"
    assert error["step"] == record_of(run)["saved_step"] > 0
    assert record_of(run)["status"] == "stopped"
    assert "The time is up: stopped after step" in answer.err
    if how == "flag":
        assert_goes_on(project, velodrome, error["command"], straight)


def test_the_second_interrupt_within_two_seconds_needs_no_save(project):
    process, run = start(project, "train.batch_size=1", "checkpoint.every=never"), project / "runs" / "run"
    wait_for_rows(process, run)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _ = process.communicate(timeout=60)

    assert process.returncode == 130
    assert record_of(run)["status"] == "stopped"
    assert not list((run / "checkpoints").glob(".tmp*"))


def test_help_names_the_flag_and_a_wrong_time_is_refused(velodrome):
    assert "--stop-after TIME" in velodrome("resume", "--help").out
    answer = velodrome("train", "mnist-mlp", "data.source=embedded", "--stop-after", "5 epochs")
    assert answer.code == 2
    assert "stop_after='5 epochs' is in epochs. It must be a time" in answer.err


def test_the_recipe_may_say_it_too(project, velodrome):
    answer = velodrome("train", "mine.toml", "train.epochs=100000", "train.stop_after=0.5s", "--name", "run")
    assert answer.code == 143
    assert record_of(project / "runs" / "run")["stop_reason"] == "The time that the run was given is over."
    ejected = velodrome("eject", "mine.toml", "train.stop_after=0.5s")
    assert "train.stop_after='0.5s' cannot be ejected" in ejected.err
