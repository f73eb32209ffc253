from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest

from support.recipes import NO_PICTURES, recipe_text
from velodrome.cli.main import run

MODULE = """\
import torch
from torch import nn


def shapes(num=120, labels=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 1, 4, 4, generator=generator)
    y = x.flatten(1)[:, :labels].argmax(1)
    return (x[:100], y[:100]), (x[100:], y[100:])


def failing():
    raise ZeroDivisionError("the user's own mistake")


class Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x):
        raise ZeroDivisionError("the user's own mistake")


def net(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))
"""

RECIPE = recipe_text(
    model='name = "mlp"\nsizes = ["auto", 8, 3]', data='name = "shelf_for_cli_tests:shapes"', tables=NO_PICTURES
)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe and the user's own module; the current folder."""
    (tmp_path / "shelf_for_cli_tests.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shelf_for_cli_tests", raising=False)  # that of another test's folder
    return tmp_path


@pytest.fixture
def velodrome(capfd):
    """Run the command line in this process."""

    def call(*arguments):
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
