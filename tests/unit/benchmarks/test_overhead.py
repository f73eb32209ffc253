"""What default settings cost a step is told from what they cost a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def test_two_lengths_tell_each_step_from_once_a_run(script: Callable[[str], ModuleType]) -> None:
    weight = torch.zeros(1)
    # The raw step takes 100 us; ours 2 us more, and 0.25 s once.
    runs = {
        "raw": [(0.4, weight)],
        "raw, half": [(0.2, weight)],
        "fit_default": [(0.4 + 0.008 + 0.25, weight)],
        "fit_default, half": [(0.2 + 0.004 + 0.25, weight)],
    }

    found = script("overhead").divided(runs, steps=4000, half=2000)

    assert found["each_step_us"]["median"] == pytest.approx(2.0)
    assert found["once_a_run_ms"]["median"] == pytest.approx(250.0)


def test_steps_of_other_trainers_import_neither_ours_nor_theirs(script: Callable[[str], ModuleType]) -> None:
    import subprocess
    import sys
    from pathlib import Path

    folder = Path(str(script("peer_steps").__file__)).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import peer_steps; print('velodrome' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
