import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest

from velodrome.data.sources import image_sets, places, registry
from velodrome.data.sources.idx import write_idx

NUM_IMAGES = {"train": 20, "t10k": 10}


def write_set(folder, *, seed=0):
    """Write the four files with random images of all ten classes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    for split, size in NUM_IMAGES.items():
        images = generator.integers(0, 256, (size, 28, 28), dtype=numpy.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", (numpy.arange(size) % 10).astype(numpy.uint8))
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def set_writer():
    return write_set


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A working folder on a machine without system packages, without apt-get and without a network."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_DATA_DIRS", "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(places, "_SYSTEM_PREFIXES", ())
    for name in ("FASHION_MNIST", "MNIST"):
        data = replace(getattr(image_sets, name), mirrors=("http://127.0.0.1:9/",))
        monkeypatch.setattr(image_sets, name, data)
        monkeypatch.setitem(registry._IMAGE_SETS, data.name, data)
    monkeypatch.setattr(registry, "_DIABETES_URLS", ("http://127.0.0.1:9/pima.csv",))
    return tmp_path / "work"


@pytest.fixture
def website(alone, tmp_path):
    """A folder that a local server shows; its address is `website.address`."""
    folder = write_set(tmp_path / "www", seed=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def online(website, monkeypatch):
    """FashionMNIST is small, and its official address is the local server; returns the folder that the server shows."""
    folder, address = website
    sha256 = {
        name: hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest()
        for name in image_sets.FASHION_MNIST.sha256
    }
    data = replace(image_sets.FASHION_MNIST, mirrors=(address,), sha256=sha256)
    monkeypatch.setattr(image_sets, "FASHION_MNIST", data)
    monkeypatch.setitem(registry._IMAGE_SETS, data.name, data)
    return folder


@pytest.fixture
def commands(alone, tmp_path, monkeypatch):
    """Returns a function that puts a shell script on PATH, which holds nothing else but a few harmless commands."""
    for tool in ("cp", "mkdir", "sleep", "touch"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")

    def add(name, body):
        script = tmp_path / "bin" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)

    return add
