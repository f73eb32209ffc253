"""`velodrome tune` on the command line: what it refuses, what it answers, and that what it writes trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

SLOW = """

class Slow(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        import time
        time.sleep(0.01)
        return self.x[index], self.y[index]


def slow():
    (x, y), val = shapes()
    return Slow(x, y), val
"""


def test_a_short_time_says_what_was_not_tried_and_leaves_nothing(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--minutes", "0.02", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert found["budget_s"] == pytest.approx(1.2)
    assert found["facts"]["total_steps"] == 8  # 100 samples in batches of 32, two epochs
    reasons = {each["technique"]: each["why"] for each in found["not_tried"]}
    assert reasons["precision"] == "out of time"
    assert reasons["pinned memory"] == "for CUDA only"
    assert "Nothing was tried" in found["sentence"]
    assert [path.name for path in project.iterdir() if path.suffix == ".toml"] == ["mine.toml"]
    assert not (project / "runs").exists()


@pytest.mark.long
def test_what_tune_writes_is_faster_and_trains(project, velodrome):
    with (project / "shelf_for_cli_tests.py").open("a") as module:
        module.write(SLOW)
    data = "data.name=shelf_for_cli_tests:slow"
    answer = velodrome(
        "tune",
        "mine.toml",
        data,
        "train.batch_size=5",
        "train.epochs=20",
        "--minutes",
        "4",
        "--numerics",
        "equal",
        "--json",
    )
    assert answer.code == 0, answer.err
    assert answer.json["written"] == "mine.tuned.toml"
    assert answer.json["best"]["train.in_memory"] is True  # a second an epoch, and two to read it once
    trained = velodrome("train", "mine.tuned.toml", "--quiet", "--json")
    assert trained.code == 0, trained.err
    assert not [path for path in project.iterdir() if path.name.startswith(".")]


def test_what_is_there_is_not_replaced(project, velodrome):
    (project / "mine.tuned.toml").write_text("mine")
    answer = velodrome("tune", "mine.toml")
    assert answer.code == 3
    assert "--overwrite" in answer.err
    assert (project / "mine.tuned.toml").read_text() == "mine"


def test_the_recipe_itself_is_never_replaced(project, velodrome):
    before = (project / "mine.toml").read_text()
    answer = velodrome("tune", "mine.toml", "--out", "mine.toml", "--overwrite")
    assert answer.code == 3
    assert "mine.toml is the recipe that is tuned" in answer.err
    assert (project / "mine.toml").read_text() == before


def test_wrong_arguments_are_usage_errors(project, velodrome):
    assert velodrome("tune", "nothing.toml").code == 2
    assert velodrome("tune", "mine.toml", "optimizer.lrr=1").code == 2
    answer = velodrome("tune", "mine.toml", "--minutes", "0")
    assert answer.code == 2
    assert "leaves no time" in answer.err
    assert velodrome("tune", "mine.toml", "--numerics", "some").code == 2


def test_a_recipe_that_cannot_be_built_says_why(project, velodrome):
    answer = velodrome("tune", "mine.toml", "data.name=shelf_for_cli_tests:failing")
    assert answer.code == 2
    assert "the user's own mistake" in answer.err


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs signals")
def test_ctrl_c_shows_what_is_known_and_writes_nothing(project):
    process = subprocess.Popen(
        [sys.executable, "-m", "velodrome", "tune", "mine.toml", "--minutes", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "Ctrl-C" in line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert [path.name for path in project.iterdir() if path.suffix == ".toml"] == ["mine.toml"]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_it_like_ctrl_c(project, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "velodrome", "tune", "mine.toml", "--minutes", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),  # `nohup`, if the tests run under it, has it ignored
    )  # fmt: skip
    assert process.stdout is not None
    assert "Ctrl-C" in process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted" in out


def test_lr_says_how_the_recipe_was_called(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--lr", "optimizer.name=sgd", "optimizer.lr=0.5")
    assert answer.code == 0, answer.err
    assert "Try it: velodrome train mine.toml optimizer.name=sgd optimizer.lr=" in answer.out
    assert "0.5 optimizer.lr" not in answer.out


def test_a_table_that_cannot_be_written_is_refused_before_the_test(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--lr", "--out", "nowhere/lr.csv")
    assert answer.code == 2
    assert "nowhere/lr.csv lies in nowhere, which is no folder" in answer.err
    assert "Data:" not in answer.out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_an_answer_that_is_lost_is_an_error(project):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "velodrome", "tune", "mine.toml", "--lr"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "The answer could not be written: No space left on device." in done.stderr


def test_lr_suggests_and_writes_a_table(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--lr", "--out", "lr.csv", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["recipe_lr"] == 0.01
    assert len(answer.json["rates"]) == len(answer.json["losses"])
    assert (project / "lr.csv").read_text().startswith("lr,loss,smoothed_loss\n")
    again = velodrome("tune", "mine.toml", "--lr", "--out", "lr.csv")
    assert again.code == 3
    assert "--overwrite" in again.err
    wrong = velodrome("tune", "mine.toml", "--lr", "--out", "lr.toml")
    assert wrong.code == 2
    assert ".csv" in wrong.err


def test_lr_says_what_to_try(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--lr")
    assert answer.code == 0, answer.err
    assert "The recipe has lr 0.01." in answer.out
    assert "falls fastest" in answer.out or "never fell" in answer.out
    assert [path.name for path in project.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == [
        "mine.toml"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--largest-batch", "--out", "x.toml"), "--largest-batch asks one question, in which --out means nothing"),
        (("--largest-batch", "--overwrite"), "writes no file"),
        (("--lr", "--minutes", "3", "--numerics", "equal"), "in which --minutes and --numerics mean nothing"),
        (("--lr", "--batch-size"), "Leave it out, or ask without --lr"),
    ],
)
def test_what_a_question_does_not_use_is_refused(project, velodrome, arguments, message):
    answer = velodrome("tune", "mine.toml", *arguments)
    assert answer.code == 2
    assert message in " ".join(answer.err.split())


def test_largest_batch_is_that_of_the_data_here(project, velodrome):
    answer = velodrome("tune", "mine.toml", "--largest-batch", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["largest"] == 64  # 100 samples
    assert answer.json["recipe_batch_size"] == 32
    assert answer.json["fastest"] in [each["batch_size"] for each in answer.json["measured"]]
    assert velodrome("tune", "mine.toml", "--largest-batch", "--lr").code == 2
