from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from velodrome.checkpoint.store import CheckpointStore


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., CheckpointStore]:
    """Return a maker of stores over one folder of checkpoints."""

    def make(run_id: str = "run-a") -> CheckpointStore:
        return CheckpointStore(tmp_path / "run" / "checkpoints", run_id=run_id)

    return make


@pytest.fixture
def save_steps() -> Callable[..., None]:
    """Return a function that saves these steps, each with a weight equal to its number."""

    def save(store: CheckpointStore, *steps: int) -> None:
        for step in steps:
            store.save(step, {"model": {"weight": torch.full((1, 2), float(step))}}, {"step": step})

    return save
