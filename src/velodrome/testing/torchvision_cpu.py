"""Import torchvision where its compiled operators do not load."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import torch

# A library undoes its definitions when it is collected; this list keeps it for the life of the process.
_DEFINED: list[torch.library.Library] = []
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> ModuleType:
    """Return torchvision, even when its compiled operators do not fit this torch.

    A wheel of torchvision built for CUDA beside a torch built for the CPU (or the other way round) leaves the
    operators `torchvision::nms` and `torchvision::qnms` undefined, and the import fails where it registers
    their shape functions ("operator torchvision::nms does not exist"). Defining the two schemas is enough for
    everything except calling them: datasets and transforms work.

    Raises:
        ImportError: torchvision is not installed, or fails for another reason.
    """
    with suppress(RuntimeError):
        return import_module("torchvision")
    import torch

    # Submodules that did load hold a half-imported package; start over.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    _DEFINED.append(library)
    for schema in _SCHEMAS:
        with suppress(RuntimeError):  # defined by an earlier attempt, or by the operators that did load
            library.define(schema)
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        raise ImportError(f"torchvision does not import beside torch {torch.__version__}: {error}") from error
