"""Memory that is there for the taking, read from a file system laid out by hand."""

from __future__ import annotations

import pytest
import torch

from velodrome.free_memory import available_bytes

CPU = torch.device("cpu")
GIB = 2**30
MACHINE = "MemTotal: 99 kB\nMemFree: 7 kB\nMemAvailable: 8388608 kB\n"  # 8 GiB


@pytest.fixture
def machine(tmp_path):
    """Return a function that lays out the files of a machine with 8 GiB free."""

    def make(files):
        for name, text in {"proc/meminfo": MACHINE, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(text))
        return tmp_path

    return make


def group(folder, limit, used, cached=0):
    where = f"sys/fs/cgroup{folder}"
    stat = f"anon 5\ninactive_file {cached}\nactive_file 77\n"
    return {f"{where}/memory.max": f"{limit}\n", f"{where}/memory.current": f"{used}\n", f"{where}/memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        (group("", 2 * GIB, GIB), GIB),  # a container
        (group("", 2 * GIB, GIB, cached=GIB // 2), 3 * GIB // 2),  # cached files make room
        (group("", "max", GIB), 8 * GIB),
        (group("", 64 * GIB, GIB), 8 * GIB),  # more than the machine has left
        (group("", GIB, 2 * GIB), 0),
        (
            {"proc/self/cgroup": "0::/user/job\n", **group("/user/job", 4 * GIB, GIB), **group("/user", 5 * GIB, 4 * GIB)},
            GIB,  # the group above has less left
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GIB,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GIB,
                "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096, "sys/fs/cgroup/memory/memory.usage_in_bytes": 5}, 8 * GIB),
    ],
)  # fmt: skip
def test_what_is_free_is_the_least_of_machine_and_control_groups(machine, files, expected):
    assert available_bytes(CPU, machine(files)) == expected


def test_where_nothing_tells_it_is_a_large_number(tmp_path):
    assert available_bytes(CPU, tmp_path) == 1 << 62


def test_this_machine_has_a_plausible_size():
    assert 1 << 20 < available_bytes(CPU) <= 1 << 62
