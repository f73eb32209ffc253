"""Law 4: 300 processes are killed with SIGKILL while they save, 150 in the foreground and 150 in the background; nothing is lost.

Each child goes on from what the one before it left, without anybody's help.
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


def run_trials(folder: Path, *, trials: int, kind: str, seed: int = 0) -> dict[str, Any]:
    """Run `kill_trials.py` and return what it saw."""
    program = Path(__file__).with_name("kill_trials.py")
    command = [sys.executable, str(program), str(folder), str(trials), str(seed), kind]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_durability_killed_while_saving_the_newest_checkpoint_loads_whole(tmp_path, kind):
    seen = run_trials(tmp_path / "checkpoints", trials=150, kind=kind)
    assert seen["trials"] == 150
    assert seen["lost"] == 0  # of the steps whose save had returned
    assert seen["wrong"] == 0
    assert seen["bad_marks"] == 0
    assert seen["problems"] == []
    assert seen["litter"] == 0  # the next save swept what the dead ones left
    assert seen["killed_inside"] > 30  # enough of them died in the middle of a save
    assert seen["reached"] > 10


def test_durability_control_removing_before_writing_is_caught_by_a_kill(tmp_path):
    assert run_trials(tmp_path / "checkpoints", trials=30, kind="control")["lost"]
