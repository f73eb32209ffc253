"""A stdout that is closed, full or read no further: training and its exit code do not depend on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.programs import environment

pytestmark = pytest.mark.slow

TRAIN = ["train", "mine.toml", "--out", "o", "--name", "run"]
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")


@pytest.fixture
def shell(project):
    """Run `velodrome ARGUMENTS REDIRECTION` in a shell; returns the code and what stderr got."""

    def call(arguments, redirection):
        command = " ".join([sys.executable, "-m", "velodrome", *arguments, redirection])
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    return call


@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        ">&- 2>&-",
        "| head -1 >/dev/null",
        "| (sleep 1; exec 0<&-; sleep 1)",
        pytest.param(">/dev/full", marks=needs_dev_full),
        pytest.param(">/dev/full 2>/dev/full", marks=needs_dev_full),
    ],
)
def test_lost_stdout_costs_neither_the_training_nor_the_exit_code(shell, project, redirection):
    code, errors = shell(TRAIN, redirection)
    assert (code, "Traceback" in errors, "BrokenPipe" in errors) == (0, False, False), errors
    assert json.loads((project / "o" / "run" / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], []])
def test_help_for_nobody_is_no_error(shell, arguments):
    code, errors = shell(arguments, ">&-")
    assert (code, errors) == (0 if arguments else 2, "")


@needs_dev_full
@pytest.mark.parametrize("arguments", [["recipes"], ["doctor", "--json"], ["--version"], ["train", "--help"]])
def test_answer_that_cannot_be_written_is_one_line_and_exit_code_1(shell, arguments):
    assert shell(arguments, ">/dev/full") == (1, "Error: The answer could not be written: No space left on device.\n")


def test_answer_to_a_closed_stdout_is_an_error(shell):
    assert shell(["recipes"], ">&-") == (1, "Error: The answer could not be written: Bad file descriptor.\n")


def test_reader_that_has_seen_enough_is_no_error(shell):
    assert shell(["recipes", "show", "mnist-mlp"], "| true") == (0, "")
