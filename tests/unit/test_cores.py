"""Cores that a process may use, read from a file system laid out by hand; asked in one way everywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import velodrome
from velodrome.cores import usable_cores, usable_processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that lays out a machine of so many hardware threads, two a core, and the files of a control group."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def make(hardware_threads, files=None):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(hardware_threads)), raising=False)
        half = hardware_threads // 2
        for each in range(hardware_threads):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{each}/topology"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "thread_siblings_list").write_text(f"{each % half},{each % half + half}\n")
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_two_threads_of_one_core_are_one_core(machine):
    assert usable_cores(machine(16)) == 8
    assert usable_processors(machine(16)) == 16


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "600000 100000",
                "sys/fs/cgroup/user/cpu.max": "500000 100000",
            },
            5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_control_groups_quota_counts(machine, files, cores):
    assert usable_cores(machine(16, files)) == cores
    assert usable_processors(machine(16, files)) == (cores if cores < 8 else 16)  # of which a quota has as many


@pytest.mark.parametrize(("processes", "cores"), [("1", 8), ("3", 2), ("100", 1), ("many", 8), ("0", 8)])
def test_processes_of_one_machine_share_its_cores(machine, monkeypatch, processes, cores):
    root = machine(16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert usable_cores(root) == cores


def test_nothing_else_counts_cores_on_its_own():
    """Affinity alone is not what a container grants; torch's own numbers, which `limit_threads` knows by heart, are no count of ours."""
    source = Path(velodrome.__file__).parent
    counts = re.compile(r"sched_getaffinity|cpu_count\(")
    found = {str(file.relative_to(source)) for file in source.rglob("*.py") if counts.search(file.read_text())}
    assert found - {"cores.py", "data/threads.py"} == set()
