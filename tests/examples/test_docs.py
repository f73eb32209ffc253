"""The Python blocks of the pages under docs run, one after the other as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from velodrome.cli.main import run

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if "```python\n" in page.read_text(encoding="utf-8"))


# What a reader has done before, by the commands that the page shows.
BEFORE = {
    "recipes.md": (
        "train mnist-mlp train.steps=2 data.source=embedded --name mine --quiet",
        "export runs/mine --weights last --out model.pt2",
    )
}


def test_there_are_pages_with_code():
    assert "training.md" in {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in BEFORE.get(page.name, ()):
        assert run(command.split()) == 0
    names = {"__name__": "__main__"}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    if page.name == "training.md":
        assert capsys.readouterr().out.splitlines()[-1] == "8"
