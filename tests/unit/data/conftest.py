import struct

import numpy
import pytest
import torch

from velodrome.testing.torchvision_cpu import import_torchvision


@pytest.fixture(scope="session")
def torchvision():
    try:
        module = import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    import torchvision.datasets
    import torchvision.transforms.v2  # noqa: F401

    return module


def write_idx(path, values):
    """Write whole numbers in the format of Yann LeCun's files: 0, 0, type, dimensions, sizes, data; big endian."""
    code = {"uint8": 0x08, "int32": 0x0C}[str(values.dtype)]
    head = struct.pack(">HBB", 0, code, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.astype(values.dtype.newbyteorder(">")).tobytes())


@pytest.fixture
def image_root(tmp_path):
    """A folder in which torchvision finds every set of the MNIST family, with ten random images in each."""
    generator = numpy.random.default_rng(0)
    images = generator.integers(0, 256, (10, 28, 28), dtype=numpy.uint8)
    images[0, 0, :] = numpy.arange(0, 252, 9)  # shades from black on
    images[0, 1, :] = 255
    labels = generator.integers(0, 10, 10, dtype=numpy.uint8)
    labels[0] = 3
    for name in ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        prefix = {"EMNIST": "emnist-digits-", "QMNIST": "qmnist-"}.get(name, "")
        for part in ("train", "test" if name in ("EMNIST", "QMNIST") else "t10k"):
            write_idx(raw / f"{prefix}{part}-images-idx3-ubyte", images)
            if name == "QMNIST":
                wide = numpy.zeros((10, 8), dtype=numpy.int32)
                wide[:, 0] = labels
                write_idx(raw / f"{prefix}{part}-labels-idx2-int", wide)
            else:
                write_idx(raw / f"{prefix}{part}-labels-idx1-ubyte", labels)
    torch.manual_seed(0)
    return tmp_path
