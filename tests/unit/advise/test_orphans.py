"""A trial ends with the process that tunes, however that went, and while its step hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True, stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
sys.stdin.read()
"""
CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "{watches}" == "True":
    from velodrome.advise.tuning.orphans import end_without
    end_without(int(sys.argv[1]))
hung = os.fork()
if hung == 0:
    time.sleep(30)
    os._exit(0)
print(os.getpid(), hung, flush=True)
time.sleep(30)
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"  # ended, and nobody has asked how


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("watches", [True, False])  # False: the negative control
def test_a_killed_parent_leaves_nothing(watches):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.replace("{watches}", str(watches))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(each) for each in parent.stdout.readline().split()]
    try:
        parent.kill()
        parent.communicate(timeout=30)
        deadline = time.monotonic() + (20 if watches else 1)
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [is_running(pid) for pid in pids] == [not watches] * 2
    finally:
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
