"""torchmetrics imports torchvision where that is installed, so it has to be one that imports."""

from contextlib import suppress

from velodrome.testing.torchvision_cpu import import_torchvision

with suppress(ImportError):
    import_torchvision()
