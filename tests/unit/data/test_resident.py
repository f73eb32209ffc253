"""Where data in memory are put: on the device where they fit, with the numbers in the line; refused where they must and do not."""

from __future__ import annotations

import pytest
import torch

from velodrome.data import bound
from velodrome.data.bound import BoundLoader
from velodrome.data.loader import DataLoader
from velodrome.errors import DataError

# A device that holds no numbers stands for the GPU: what is decided is shapes and sizes.
META = torch.device("meta")
MIB = 1 << 20


def view(monkeypatch, free, resident="auto"):
    monkeypatch.setattr(bound, "available_bytes", lambda device: free)
    return BoundLoader(DataLoader(torch.zeros(4 * MIB // 16, 4), 8, resident=resident), seed=0, device=META)  # 4 MiB


@pytest.mark.parametrize("resident", ["auto", True])
def test_data_that_fit_are_put_on_the_device(monkeypatch, resident):
    source = view(monkeypatch, 11 * MIB, resident)  # 40% are 4.4
    assert source.columns.device == META
    assert "on meta" in source.describe()
    assert "resident (4.0 MiB of the 11.0 MiB that are free there)" in source.describe()
    assert source.in_own_order().describe() == source.describe()


def test_data_that_do_not_fit_stay_and_the_line_says_why(monkeypatch):
    source = view(monkeypatch, 9 * MIB)  # 40% are 3.6
    assert source.columns.device.type == "cpu"
    assert (
        "moved to meta batch by batch (4.0 MiB of the 9.0 MiB that are free there, of which at most 40%"
        in source.describe()
    )


def test_data_that_must_and_do_not_fit_are_refused(monkeypatch):
    with pytest.raises(DataError, match=r"4.0 MiB of the 9.0 MiB.*Leave resident=True out"):
        _ = view(monkeypatch, 9 * MIB, True).columns


def test_data_that_shall_not_be_there_stay(monkeypatch):
    source = view(monkeypatch, 1 << 40, False)
    assert source.columns.device.type == "cpu"
    assert source.describe().endswith("moved to meta batch by batch")


def test_on_the_cpu_nothing_is_said():
    source = BoundLoader(DataLoader(torch.zeros(9, 4), 8), seed=0, device=torch.device("cpu"))
    assert source.describe() == "9 samples, in memory, batches of 8, in their own order"
