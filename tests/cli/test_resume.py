"""The same command again, after the process was killed: `--resume auto` and `velodrome resume`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.forked import start_command_line
from support.programs import environment, ranks_of
from velodrome.checkpoint.read import read_tensors


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def last_weights(run):
    return read_tensors(sorted((run / "checkpoints").glob("step-*"))[-1])


@pytest.fixture
def straight(project, velodrome):
    """A run of four epochs that nothing disturbed."""
    answer = velodrome("train", "mine.toml", "train.epochs=4", "--name", "straight", "-q")
    assert answer.code == 0, answer.err
    return project / "runs" / "straight"


def assert_same(run, other):
    weights, others = last_weights(run), last_weights(other)
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)
    assert rows_of(run) == rows_of(other)


def test_resume_goes_on_with_more_epochs(project, velodrome, straight):
    assert velodrome("train", "mine.toml", "--name", "short", "-q").code == 0

    answer = velodrome("resume", "runs/short", "train.epochs=4", "--recipe", "mine.toml")

    assert answer.code == 0, answer.err
    assert "Going on from the checkpoint of step 8" in answer.err + answer.out
    assert_same(project / "runs" / "short", straight)


def test_the_same_command_again_does_nothing_when_the_run_is_done(velodrome, straight):
    before = (straight / "metrics.jsonl").read_bytes()

    answer = velodrome("train", "mine.toml", "train.epochs=4", "--name", "straight", "--resume", "auto")

    assert answer.code == 0, answer.err
    assert "is done already, after 16 steps" in answer.err + answer.out
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_auto_without_a_name_finds_the_newest_run_of_the_recipe(project, velodrome):
    assert velodrome("train", "mine.toml", "--resume", "auto", "-q").code == 0
    assert velodrome("train", "mine.toml", "train.epochs=3", "--resume", "auto", "-q").code == 0

    (run,) = (project / "runs").iterdir()
    assert [row["epoch"] for row in rows_of(run) if row["kind"] == "epoch"] == [1, 2, 3]


def test_changed_settings_are_refused_with_exit_code_3(velodrome, straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    answer = velodrome("train", "mine.toml", "train.epochs=5", "optimizer.lr=0.5", "--resume", str(straight))
    assert answer.code == 3
    assert "groups.lr: 0.01 -> 0.5" in answer.err
    assert "nothing was changed. Put them back, accept them with velodrome resume --accept-changes" in answer.err
    assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before

    accepted = velodrome(
        "resume", str(straight), "train.epochs=5", "optimizer.lr=0.5", "--accept-changes", "--recipe", "mine.toml"
    )
    assert accepted.code == 0, accepted.err


def test_a_folder_without_a_run_is_refused(project, velodrome):
    for arguments in (("resume", "nowhere"), ("train", "mine.toml", "--resume", "nowhere")):
        answer = velodrome(*arguments)
        assert (answer.code, "there is no run in it" in answer.err) == (3, True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of this system")
def test_killed_at_any_moment_and_started_again_it_ends_the_same(project, velodrome):
    command = ["train", "mine.toml", "train.epochs=40", "checkpoint.every=every 3 steps", "--resume", "auto", "-q"]
    assert velodrome(*command, "--name", "undisturbed").code == 0
    run, kills = project / "runs" / "killed", 0
    for steps in (20, 70, 110):
        process = start_command_line([*command, "--name", "killed"], project)
        while process.is_alive() and not any((run / "checkpoints").glob(f"step-{'?' * 8}/")):
            time.sleep(0.01)
        while process.is_alive() and max(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")) < steps:
            time.sleep(0.001)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills == 3

    assert velodrome(*command, "--name", "killed").code == 0
    assert_same(run, project / "runs" / "undisturbed")


def start_two(project, *arguments):
    """Start the command line where it starts two processes."""
    command = [sys.executable, "-m", "velodrome", *arguments, "-q"]
    return subprocess.Popen(command, cwd=project, env=environment(project), stderr=subprocess.PIPE, text=True)


def newest(run):
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the ids of processes from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("kills", [["one"], pytest.param(["all", "one"], marks=pytest.mark.long)], ids="-".join)
def test_two_processes_killed_and_started_again_end_the_same(project, kills):
    """All at once, as a machine that is lost, and then one of them; `resume` starts as many as there were."""
    command = ["train", "mine.toml", "train.epochs=50", "checkpoint.every=every 2 steps", "--processes", "2", "--resume", "auto"]  # fmt: skip
    straight = start_two(project, *command, "--name", "undisturbed")
    run = project / "runs" / "killed"
    for who in kills:
        process = start_two(project, *command, "--name", "killed")
        before = newest(run)
        while process.poll() is None and newest(run) < before + 4:
            time.sleep(0.005)
        ranks = ranks_of(process.pid)
        assert sorted(ranks) == [0, 1], process.communicate()
        for pid in (process.pid, *ranks.values()) if who == "all" else (ranks[1],):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
    last = start_two(project, "resume", "runs/killed", *command[2:4], "--recipe", "mine.toml")
    _, said = last.communicate(timeout=120)

    assert last.returncode == 0, said
    _, said = straight.communicate(timeout=120)
    assert straight.returncode == 0, said
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert_same(run, project / "runs" / "undisturbed")


def is_running(pid):
    """Return whether a process runs; one that has ended and that nobody has asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells processes of their parent's end")
def test_processes_of_a_launcher_that_is_killed_save_and_end(project):
    process = start_two(project, "train", "mine.toml", "train.epochs=100000", "--processes", "2", "--name", "run")
    run = project / "runs" / "run"
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1], process.communicate()
    process.kill()
    process.communicate(timeout=60)

    end = time.monotonic() + 60
    while any(map(is_running, ranks.values())):
        assert time.monotonic() < end, "the ranks train on"
        time.sleep(0.05)
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert newest(run) > 0
