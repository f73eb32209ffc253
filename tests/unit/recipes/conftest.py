from __future__ import annotations

import pytest

from support.recipes import recipe_text

RECIPE = recipe_text(model='name = "mlp"\nsizes = [16, 8, 3]', data='name = "mnist"')


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    """A good recipe, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(RECIPE)
    return path
