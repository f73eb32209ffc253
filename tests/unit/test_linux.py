"""What Linux tells of processes; nothing where it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from velodrome.linux import boot_id, pid_space, read_family, read_process, read_text, status_bytes

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it in /proc")


def write_process(root, pid, *, name="python", state="S", parent=1, ticks=(1, 2, 3, 4), start=4711):
    (root / f"proc/{pid}").mkdir(parents=True)
    numbers = " ".join(map(str, ticks))
    (root / f"proc/{pid}/stat").write_text(
        f"{pid} ({name}) {state} {parent} 1 1 0 -1 0 0 0 0 0 {numbers} 20 0 1 0 {start} 99 98\n"
    )


def test_a_process_is_read_whatever_its_name(tmp_path):
    write_process(tmp_path, 7, name="a) Z 3 (b\n)", parent=5)
    found = read_process(7, tmp_path)
    assert (found.pid, found.parent, found.is_running, found.start, found.ticks) == (7, 5, True, "4711", 10)


@pytest.mark.parametrize(("state", "is_running"), [("R", True), ("D", True), ("T", True), ("Z", False), ("X", False)])
def test_one_that_nobody_asked_for_its_exit_code_does_not_run(tmp_path, state, is_running):
    write_process(tmp_path, 7, state=state)
    assert read_process(7, tmp_path).is_running is is_running


def test_where_nothing_is_told_the_answer_is_none(tmp_path):
    assert read_process(7, tmp_path) is None
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/stat").write_text("7 (cut off) S 1 1")
    assert read_process(7, tmp_path) is None
    assert read_family(7, tmp_path) == []
    assert (boot_id(tmp_path), pid_space(tmp_path), status_bytes("VmHWM", tmp_path)) == ("", "", None)
    assert read_text(tmp_path) == ""  # a folder


def test_a_family_is_the_process_and_all_below_it(tmp_path):
    for pid, parent in ((5, 1), (7, 5), (6, 7), (8, 5), (9, 1), (10, 9)):
        write_process(tmp_path, pid, parent=parent)
    assert sorted(each.pid for each in read_family(5, tmp_path)) == [5, 6, 7, 8]
    assert read_family(5, tmp_path)[0].pid == 5
    assert read_family(11, tmp_path) == []


@on_linux
def test_this_process_and_its_child_are_found():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in [each.pid for each in read_family(os.getpid())]
        before = read_process(child.pid)
        assert before.is_running
        assert before.parent == os.getpid()
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet asked for its exit code
    assert not read_process(child.pid).is_running
    child.communicate()
    assert read_process(child.pid) is None


@on_linux
def test_the_most_memory_that_ever_was_is_no_less_than_what_is_there():
    resident, most = status_bytes("VmRSS"), status_bytes("VmHWM")
    assert 1_000_000 < resident <= most
    assert status_bytes("Vm") is None
