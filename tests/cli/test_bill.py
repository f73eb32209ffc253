"""Where the time went, on the command line: the bill, a trace, the lines that wait."""

import json

import pytest

from velodrome.cli.running import watching_arguments, watching_options


def test_train_says_where_the_time_went(project, velodrome):
    answer = velodrome("train", "mine.toml", "--name", "mine")
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.out.splitlines() if line.startswith("Time ")]
    assert "saving" in line
    assert "%" in line


def test_bill_is_in_the_answer_for_scripts(project, velodrome):
    bill = velodrome("train", "mine.toml", "--name", "mine", "--json").json["bill"]
    assert sum(bill["parts_s"].values()) == pytest.approx(bill["wall_s"])
    assert bill["batches"] == 8  # two epochs of 100 samples in batches of 32
    assert bill["dataset"]


def test_profile_and_find_syncs(project, velodrome):
    answer = velodrome("train", "mine.toml", "--name", "mine", "--profile-steps", "3:4", "--find-syncs")
    assert answer.code == 0, answer.err
    run = project / "runs" / "mine"
    assert json.loads((run / "profile" / "batches-3-4.pt.trace.json").read_text())["traceEvents"]
    assert "Trace" in answer.out
    # Default batches are 11 to 15, and this run has eight.
    assert "No line was looked at: the run had fewer than 11 batches." in (run / "log.txt").read_text()


def test_resume_watches_too(project, velodrome):
    assert velodrome("train", "mine.toml", "--name", "mine").code == 0
    answer = velodrome(
        "resume", "runs/mine", "--recipe", "mine.toml", "train.epochs=6", "--profile-steps", "3:4", "--find-syncs"
    )
    assert answer.code == 0, answer.err
    run = project / "runs" / "mine"
    assert (run / "profile" / "batches-3-4.pt.trace.json").exists()
    assert "No line waited for the device in 5 batches of training." in (run / "log.txt").read_text()
    assert (
        velodrome("resume", "runs/mine", "--recipe", "mine.toml", "train.epochs=7", "--profile-steps", "7:3").code == 2
    )


@pytest.mark.parametrize(
    ("given", "arguments", "options"),
    [
        ({}, {}, []),
        ({"profile": True}, {"profile": True}, ["--profile"]),
        ({"profile_steps": "3:4"}, {"profile": "3:4"}, ["--profile-steps", "3:4"]),
        (
            {"stop_after": "8h", "find_syncs": True},
            {"stop_after": "8h", "find_syncs": True},
            ["--stop-after", "8h", "--find-syncs"],
        ),
    ],
)
def test_what_watches_or_ends_a_run_reaches_each_of_its_processes(given, arguments, options):
    all_of_them = {"stop_after": None, "profile": False, "profile_steps": None, "find_syncs": False} | given
    assert watching_arguments(**all_of_them) == arguments
    assert watching_options(**all_of_them) == options


def test_profile_in_a_recipe(project, velodrome):
    answer = velodrome(
        "train", "mine.toml", "--name", "mine", 'logging.profile="2:2"', "logging.find_syncs=true", "train.epochs=4"
    )
    assert answer.code == 0, answer.err
    run = project / "runs" / "mine"
    assert (run / "profile" / "batches-2-2.pt.trace.json").exists()
    assert "No line waited for the device in 5 batches of training." in (run / "log.txt").read_text()
    assert velodrome("train", "mine.toml", 'logging.profile="2:2"', "--dry-run").code == 0


@pytest.mark.parametrize("steps", ["7:3", "", "0", "x"])
def test_wrong_steps_are_refused(project, velodrome, steps):
    answer = velodrome("train", "mine.toml", "--name", "mine", "--profile-steps", steps)
    assert answer.code == 2
    assert f"--profile-steps '{steps}' says not which batches. Give a number of batches from the 11th on" in answer.err
    assert not (project / "runs" / "mine").exists()


def test_a_script_does_not_profile(project, velodrome):
    plain = velodrome("eject", "fashion-mnist-mlp")
    changed = velodrome("eject", "fashion-mnist-mlp", "logging.profile=true")
    after = "import argparse"  # above it stands the command
    assert changed.out.partition(after)[2] == plain.out.partition(after)[2] != ""
