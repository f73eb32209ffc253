"""Cores that a process may use, read from a file system laid out by hand; threads lowered only where nobody said otherwise."""

from __future__ import annotations

import os

import pytest
import torch

from velodrome.data import threads
from velodrome.data.threads import limit_threads, set_threads, usable_cores


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


@pytest.mark.parametrize(("processes", "cores"), [("1", 8), ("3", 2), ("100", 1), ("many", 8), ("0", 8)])
def test_processes_of_one_machine_share_its_cores(machine, monkeypatch, processes, cores):
    root = machine(16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert usable_cores(root) == cores


@pytest.fixture
def of_eight(monkeypatch):
    """Eight hardware threads and cores, of which the test says how many may be used; torch has taken eight threads."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "_set_by_us", None)
    monkeypatch.setattr(threads, "_told", None)
    torch.set_num_threads(8)
    yield lambda cores: monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "num_workers", "is_on_cpu", "left"),
    [(8, 0, True, 8), (8, 3, True, 5), (8, 20, True, 1), (2, 0, True, 2), (8, 3, False, 8), (2, 3, False, 2)],
)
def test_threads_and_workers_are_no_more_than_the_cores(of_eight, cores, num_workers, is_on_cpu, left):
    of_eight(cores)
    line = limit_threads(num_workers=num_workers, is_on_cpu=is_on_cpu)
    assert torch.get_num_threads() == left
    assert bool(line) == (left != 8)  # a line only where something was changed
    if line:
        assert f"threads: 8 -> {left}" in line
        assert f"may use {cores} core" in line
    assert limit_threads(num_workers=num_workers, is_on_cpu=is_on_cpu) == ""


def test_what_was_lowered_here_may_be_lowered_again(of_eight):
    of_eight(6)
    limit_threads(num_workers=0, is_on_cpu=True)
    assert "6 -> 4 beside 2 workers" in limit_threads(num_workers=2, is_on_cpu=True)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_variables_are_respected(of_eight, monkeypatch, name):
    of_eight(2)
    monkeypatch.setenv(name, "8")
    assert limit_threads(num_workers=2, is_on_cpu=True) == ""
    assert torch.get_num_threads() == 8


def test_the_users_own_number_is_respected(of_eight):
    of_eight(2)
    torch.set_num_threads(5)
    assert limit_threads(num_workers=2, is_on_cpu=True) == ""
    assert torch.get_num_threads() == 5


def test_a_recipes_number_is_respected_also_where_torch_would_take_it(of_eight):
    of_eight(2)
    set_threads(8)
    assert limit_threads(num_workers=2, is_on_cpu=True) == ""
    assert torch.get_num_threads() == 8
