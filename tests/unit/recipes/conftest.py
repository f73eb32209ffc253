from __future__ import annotations

import pytest

RECIPE = """\
[model]
name = "mlp"
sizes = [16, 8, 3]

[data]
name = "mnist"

[loss]
name = "cross_entropy"

[optimizer]
name = "adam"
lr = 0.01

[train]
epochs = 2
batch_size = 32
metrics = ["accuracy"]
"""


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    """A good recipe, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(RECIPE)
    return path
