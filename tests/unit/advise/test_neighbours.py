"""Other programs on the cores: told from what this process and its children use."""

from __future__ import annotations

import os
import sys
import time

import pytest

from velodrome.advise.tuning.neighbours import Usage, fraction_of_others, read_usage

HZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def usage(at, all_s, own_s, processors=2):
    return Usage(at=at, all_s=all_s, own_s=own_s, processors=processors)


@pytest.mark.parametrize(
    ("all_s", "own_s", "usable", "processors", "share"),
    [
        (20, 20, 2, 2, 0.0),  # both cores for 10 s, all of it by this process
        (20, 10, 2, 2, 0.5),  # one of two cores was somebody else's
        (20, 0, 2, 2, 1.0),
        (10, 10, 2, 2, 0.0),  # this process had one, and the other one was idle
        (80, 40, 8, 8, 0.5),  # others had a thread of each of four cores
        (20, 0, 2, 8, 0.0),  # others had two of eight, which leaves more than it may use
        (70, 0, 2, 8, 0.5),  # others had seven of eight
        (5, 6, 2, 2, 0.0),  # clocks that tick at different times
    ],
)
def test_what_others_had_is_a_share_of_the_cores_that_may_be_used(all_s, own_s, usable, processors, share):
    before, after = usage(0, 100, 50, processors), usage(10, 100 + all_s, 50 + own_s, processors)
    assert fraction_of_others(before, after, processors=usable) == pytest.approx(share)


def test_nobody_is_suspected_without_knowledge_or_time():
    assert fraction_of_others(None, usage(1, 1, 0), processors=2) == 0
    assert fraction_of_others(usage(0, 0, 0), None, processors=2) == 0
    assert fraction_of_others(usage(0, 0, 0), usage(0.01, 5, 0), processors=2) == 0


def make_system(root, *, busy, processes):
    """Write what Linux tells of two processors and of processes: `pid: (parent, ticks)`, in four kinds of ticks each."""
    user, nice, system, irq, soft, steal = busy
    (root / "proc").mkdir()
    cpu = (
        f"{user} {nice} {system} 9999 8888 {irq} {soft} {steal} 7777 0"  # idle, waiting for a disk; guests are in user
    )
    (root / "proc/stat").write_text(f"cpu  {cpu}\ncpu0 1\ncpu1 1\nintr 5\n")
    for pid, (parent, ticks) in processes.items():
        (root / f"proc/{pid}").mkdir()
        numbers = " ".join(map(str, ticks))
        (root / f"proc/{pid}/stat").write_text(
            f"{pid} (a) name (1) S {parent} 1 1 0 -1 0 0 0 0 0 {numbers} 20 0 1 0 4711"
        )


def test_time_is_read_for_all_and_for_this_process_with_all_below_it(tmp_path):
    own = os.getpid()
    below = {7: (own, (10, 0, 0, 0)), 9: (7, (0, 100, 0, 0))}
    make_system(
        tmp_path, busy=(1000, 100, 10, 5, 4, 3), processes={own: (1, (1, 2, 3, 4)), **below, 5: (1, (999, 0, 0, 0))}
    )
    found = read_usage(tmp_path)
    assert found.processors == 2
    assert found.all_s == pytest.approx(1122 / HZ)
    assert found.own_s == pytest.approx((1 + 2 + 3 + 4 + 10 + 100) / HZ)


def test_a_system_that_does_not_tell_is_none(tmp_path):
    assert read_usage(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("something else\n")
    assert read_usage(tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it in /proc")
def test_own_work_is_own():
    before, begun = read_usage(), time.process_time()
    while time.process_time() - begun < 0.3:
        sum(range(1000))
    after = read_usage()
    assert after.own_s - before.own_s == pytest.approx(0.3, abs=0.1)
    assert after.all_s - before.all_s >= 0.2
