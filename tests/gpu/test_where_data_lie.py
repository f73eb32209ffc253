"""Recipes on CUDA that say where their data lie: in memory, on the device, pinned; the numbers stay the same."""

from __future__ import annotations

import sys

import pytest
import torch

from support.recipes import recipe_text
from velodrome.advise.tuning.bench import Bench
from velodrome.advise.tuning.setup import Setup
from velodrome.advise.tuning.techniques import find_techniques
from velodrome.recipes.read import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

MODULE = """\
import torch
from torch.utils.data import Dataset


def tensors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator)
    return (x, x[:, :3].argmax(1)), None


class OneByOne(Dataset):
    def __init__(self):
        (self.x, self.y), _ = tensors()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def dataset():
    return OneByOne(), None
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a bench and gives its facts."""
    (tmp_path / "shelf_for_gpu_data.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(
        recipe_text(model='name = "mlp"\nsizes = [16, 8, 3]', data='name = "shelf_for_gpu_data:tensors"')
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shelf_for_gpu_data", raising=False)
    return lambda *overrides: Bench(Setup(recipe="mine.toml", overrides=("train.device=cuda", *overrides))).start()


def choices(facts, *overrides):
    return {each.name for each in find_techniques(load_recipe("mine.toml", overrides).recipe, facts) if each.choices}


def test_data_are_on_the_device_or_beside_it_as_the_recipe_says(start):
    auto, beside, there = start(), start("train.resident=false"), start("train.resident=true")
    assert (auto.is_resident, beside.is_resident, there.is_resident) == (True, False, True)
    assert auto.loss == pytest.approx(beside.loss) == pytest.approx(there.loss)
    assert "data on the device" in choices(beside)
    assert "data on the device" not in choices(auto)


def test_samples_that_are_read_one_by_one_are_pinned_or_kept(start):
    data = "data.name=shelf_for_gpu_data:dataset"
    plain, pinned, kept = start(data), start(data, "train.pin_memory=true"), start(data, "train.in_memory=true")
    assert plain.loss == pytest.approx(pinned.loss) == pytest.approx(kept.loss)
    assert {"data in memory", "workers", "pinned memory"} <= choices(plain, data)
    assert kept.is_resident
