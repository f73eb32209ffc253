"""Law 4: processes are killed with SIGKILL while they save, in the foreground and in the background; nothing is lost.

Each child goes on from what the one before it left, without anybody's help. 60 in the everyday suite; `make test-long` kills 300.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.programs import environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="there is no fork")]


KINDS = ("foreground", "background", "control")


@pytest.fixture(scope="module", params=[30, pytest.param(150, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def trials(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Return how many were killed of each kind, and what `kill_trials.py` saw by kind."""
    program = Path(__file__).with_name("kill_trials.py")
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, str(program), str(folder), "0", str(request.param), *KINDS]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    tables = map(json.loads, done.stdout.splitlines()[-len(KINDS) :])
    return request.param, dict(zip(KINDS, tables, strict=True))


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_durability_killed_while_saving_the_newest_checkpoint_loads_whole(trials, kind):
    number, seen = trials[0], trials[1][kind]
    assert seen["trials"] == number
    assert seen["lost"] == 0  # of the steps whose save had returned
    assert seen["wrong"] == 0
    assert seen["bad_marks"] == 0
    assert seen["problems"] == []
    assert seen["litter"] == 0  # the next save swept what the dead ones left
    assert seen["killed_inside"] > number / 5  # enough of them died in the middle of a save
    assert seen["reached"] > number / 15


def test_durability_control_removing_before_writing_is_caught_by_a_kill(trials):
    assert trials[1]["control"]["lost"]
