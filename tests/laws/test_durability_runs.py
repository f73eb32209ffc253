"""Law 4 over whole runs: whichever call of the system fails or is the last one, the same command again ends like the run without faults.

`crash_trials.py` has the trials. Each case tries a share of the operations; together the cases of one kind try most of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="there is no fork")]


@pytest.mark.parametrize(
    ("mode", "kind", "first"),
    [
        ("exit before", "background", 1),
        ("exit after", "background", 3),
        ("exit before", "foreground", 5),
        ("ENOSPC", "background", 2),
        ("ENOSPC", "foreground", 4),
        ("EIO", "background", 6),
        ("EDQUOT", "foreground", 1),
        ("short write", "background", 3),
    ],
)
def test_durability_any_system_call_of_a_run_fails_the_run_ends_the_same(tmp_path, mode, kind, first):
    program = Path(__file__).with_name("crash_trials.py")
    command = [sys.executable, str(program), str(tmp_path), mode, kind, str(first), "8"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["problems"] == []
    assert seen["operations"] > 120
    # A process that ends is gone; what merely fails does not stop training, unless it comes before the first step.
    assert (seen["went_through"] if mode.startswith("exit") else seen["ended"]) <= 2
