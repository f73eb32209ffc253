"""torchvision imports beside a torch that it was not built for, and a real failure is an ImportError."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from types import ModuleType


def test_torchvision_imports_with_working_transforms() -> None:
    pytest.importorskip("PIL")
    torchvision = import_or_skip()
    from PIL import Image

    tensor = torchvision.transforms.ToTensor()(Image.new("L", (2, 3), color=255))

    assert tensor.shape == (1, 3, 2)
    assert tensor.min() == 1.0  # 255 / 255
    assert import_torchvision() is torchvision


def test_missing_torchvision_is_an_import_error() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from velodrome.testing.torchvision_cpu import import_torchvision\n"
        "try:\n    import_torchvision()\nexcept ImportError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "refused\n"


def import_or_skip() -> ModuleType:
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
