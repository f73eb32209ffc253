"""Law 4 over whole runs: whichever call of the system fails or is the last one, the same command again ends like the run without faults.

`crash_trials.py` has the trials. In the everyday suite each case tries every 24th operation, beginning with another one; `make test-long`
tries them all in every case.
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


CASES = (
    ("exit before", "background", 1),
    ("exit after", "background", 4),
    ("exit before", "foreground", 7),
    ("ENOSPC", "background", 10),
    ("ENOSPC", "foreground", 13),
    ("EIO", "background", 16),
    ("EDQUOT", "foreground", 19),
    ("short write", "background", 22),
    ("exit before", "control", 1),
)


def run_cases(folder: Path, stride: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Run `crash_trials.py` over all cases, in one process, and return what it saw in each."""
    program = Path(__file__).with_name("crash_trials.py")
    cases = [f"{mode}:{kind}:{first if stride > 1 else 1}" for mode, kind, first in CASES]
    command = [sys.executable, str(program), str(folder), str(stride), *cases]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr
    tables = [json.loads(line) for line in done.stdout.splitlines()[-len(CASES) :]]
    return {case[:2]: table for case, table in zip(CASES, tables, strict=True)}


@pytest.fixture(scope="module", params=[24, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_cases(tmp_path_factory.mktemp("crashes"), request.param)


@pytest.mark.parametrize(("mode", "kind"), [case[:2] for case in CASES if case[1] != "control"])
def test_durability_any_system_call_of_a_run_fails_the_run_ends_the_same(seen, mode, kind):
    table = seen[mode, kind]
    assert table["problems"] == []
    assert table["operations"] > 120
    if mode.startswith("exit"):  # such a process is gone
        assert len(table["went_through"]) <= 2
    else:  # what merely fails does not stop training, unless it comes before the first step
        assert all(number <= 10 for number in table["ended"])


def test_durability_control_a_journal_that_is_not_cut_back_is_caught(seen):
    assert any("it ends otherwise" in problem for problem in seen["exit before", "control"]["problems"])
