"""Threads are lowered only where nobody said otherwise."""

from __future__ import annotations

import os

import pytest
import torch

from velodrome.data import threads
from velodrome.data.threads import limit_threads, set_threads


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


def test_a_share_of_our_launcher_is_no_wish_of_the_users(of_eight, monkeypatch):
    of_eight(2)  # of this process: its share of the machine's
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert limit_threads(num_workers=1, is_on_cpu=True) == ""
    monkeypatch.setenv("VELODROME_THREADS", "3")
    assert "3 -> 1 beside 1 worker," in limit_threads(num_workers=1, is_on_cpu=True)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # which no launcher sets
    torch.set_num_threads(3)
    assert limit_threads(num_workers=1, is_on_cpu=True) == ""
