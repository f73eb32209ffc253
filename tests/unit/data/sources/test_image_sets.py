import gzip
import runpy
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from velodrome.data.sources import fetch, load_fashion_mnist, load_mnist
from velodrome.data.sources.idx import read_idx, write_idx
from velodrome.data.sources.places import embedded_folder, system_folders
from velodrome.errors import ArgumentError, DataError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.fixture
def said():
    return []


@pytest.mark.parametrize(
    ("load", "title", "first_name"), [(load_fashion_mnist, "FashionMNIST", "T-shirt/top"), (load_mnist, "MNIST", "0")]
)
def test_embedded_subset_has_all_classes_types_and_sizes(alone, said, load, title, first_name):
    splits = load(source="embedded", say=said.append)
    assert said == [splits.origin] == [f"{title}: 8,000 + 2,000 images from the embedded subset"]
    assert len(splits.class_names) == 10
    assert splits.class_names[0] == first_name
    for (images, labels), size in ((splits.train, 8000), (splits.val, 2000)):
        assert images.shape == (size, 1, 28, 28)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert labels.dtype == torch.int64
        assert labels.shape == (size,)
        assert labels.bincount().min() >= size // 10 * 0.8, "every class is there about equally often"
        assert len(labels.bincount()) == 10


def test_every_value_is_the_same_float_as_in_torchvisions_to_tensor(alone, torchvision_or_none):
    all_values = numpy.resize(numpy.arange(256, dtype=numpy.uint8), (20, 28, 28))
    folder = alone / "local"
    folder.mkdir()
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", all_values)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", numpy.arange(20, dtype=numpy.uint8) % 10)
    images = load_fashion_mnist(folder, say=str).train[0]
    assert torch.equal(images[:, 0], torch.from_numpy(all_values).to(torch.float32).div(255))
    if torchvision_or_none is not None:
        to_tensor = torchvision_or_none.transforms.ToTensor()
        assert torch.equal(images[3], to_tensor(all_values[3][:, :, None]))


def test_normalized_images_have_mean_0_and_deviation_1_over_the_training_pixels(alone, set_writer):
    set_writer(alone / "data" / "fashion-mnist")
    plain, normalized = (load_fashion_mnist(normalize=normalize, say=str) for normalize in (False, True))
    pixels = plain.train[0].double()
    mean, std = pixels.mean().item(), pixels.std().item()
    torch.testing.assert_close(normalized.train[0].double(), (pixels - mean) / std, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalized.val[0].double(), (plain.val[0].double() - mean) / std, rtol=1e-5, atol=1e-6)
    fitted = dict(normalized.preprocessing)
    assert fitted.pop("kind") == "images"
    assert fitted == pytest.approx({"mean": mean, "std": std}, rel=1e-5)
    assert plain.preprocessing == {}


def test_images_of_one_color_cannot_be_normalized(alone, set_writer):
    folder = set_writer(alone / "data" / "fashion-mnist")
    write_idx(folder / f"{TRAIN_IMAGES}.gz", numpy.full((20, 28, 28), 255, numpy.uint8))
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES}.gz: every pixel is 1, so images cannot be normalised. Remove"):
        load_fashion_mnist(normalize=True, say=str)


@pytest.fixture
def torchvision_or_none():
    from velodrome.testing.torchvision_cpu import import_torchvision

    try:
        module = import_torchvision()
        import torchvision.transforms  # noqa: F401
    except ImportError:
        return None
    return module


# ---- where the files come from


def test_auto_takes_the_local_folder_then_the_system_then_the_download_then_the_embedded_subset(
    alone, online, said, set_writer, monkeypatch, tmp_path
):
    shared = tmp_path / "share"
    set_writer(shared / "datasets" / "fashion-mnist", seed=2)
    monkeypatch.setenv("XDG_DATA_DIRS", f"/nowhere::{shared}")
    local = set_writer(alone / "data" / "fashion-mnist")

    assert load_fashion_mnist(say=str).origin == (
        "FashionMNIST: 20 + 10 images from the local folder data/fashion-mnist"
    )
    shutil.rmtree(local)
    assert load_fashion_mnist(say=str).origin.endswith(
        f"from the system package in {shared / 'datasets' / 'fashion-mnist'}"
    )
    assert not local.exists()
    shutil.rmtree(shared)
    assert load_fashion_mnist(say=said.append).origin.endswith(
        "20 + 10 images from the official download, now in data/fashion-mnist"
    )
    assert said[1] == "FashionMNIST: downloading into data/fashion-mnist ..."
    assert load_fashion_mnist(say=str).origin.endswith("from the local folder data/fashion-mnist")
    shutil.rmtree(local)
    for path in online.iterdir():
        path.unlink()
    said.clear()
    assert load_fashion_mnist(say=said.append).origin.endswith("8,000 + 2,000 images from the embedded subset")
    assert "no download. train-images-idx3-ubyte.gz could not be downloaded" in said[2]
    assert "404" in said[2]
    assert list(alone.rglob("*")) in ([], [alone / "data"]), "the subset is not stored where a later run looks for all"


def test_each_source_can_be_forced(alone, online, set_writer, monkeypatch, tmp_path):
    set_writer(tmp_path / "share" / "datasets" / "fashion-mnist", seed=2)
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    set_writer(tmp_path / "mine")
    seen = {}
    for source in ("local", "system", "embedded"):
        splits = load_fashion_mnist(tmp_path / "mine", source=source, say=str)
        seen[source] = splits.train[0].sum().item()
    seen["download"] = load_fashion_mnist(tmp_path / "new", source="download", say=str).train[0].sum().item()
    assert len(set(seen.values())) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "local",
            r"FashionMNIST has no files in data/fashion-mnist, .*data/FashionMNIST/raw. It wants train-images.*Run: ",
        ),
        ("system", r"has no files in /usr/nowhere/datasets/fashion-mnist.*Run: velodrome data fetch fashion-mnist"),
        ("download", r"train-images-idx3-ubyte.gz could not be downloaded. Tried http://127.0.0.1:9/train.*refused"),
    ],
)
def test_a_forced_source_that_has_nothing_is_refused(alone, monkeypatch, source, message):
    monkeypatch.setenv("XDG_DATA_DIRS", "/usr/nowhere")
    with pytest.raises(DataError, match=message):
        load_fashion_mnist(source=source, say=str)
    assert list(alone.iterdir()) == []


def test_an_unknown_source_names_the_nearest(alone):
    with pytest.raises(ArgumentError, match="source='embeded' is not a source. Did you mean \"embedded\""):
        load_fashion_mnist(source="embeded")


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw", "fashion-mnist"])
def test_local_folder_may_have_torchvisions_layout(alone, set_writer, tmp_path, layout):
    set_writer(tmp_path / "root" / layout)
    assert len(load_fashion_mnist(tmp_path / "root", source="local", say=str).train[0]) == 20


def test_torchvisions_folder_below_data_is_found_and_mnist_is_not_taken_for_it(alone, set_writer):
    set_writer(alone / "data" / "MNIST" / "raw")
    with pytest.raises(DataError, match="no files in"):
        load_fashion_mnist(source="local", say=str)
    set_writer(alone / "data" / "FashionMNIST" / "raw")
    assert load_fashion_mnist(say=str).origin.endswith("the local folder data/FashionMNIST/raw")


def test_plain_files_are_read_and_a_lone_one_does_not_mix_with_a_gzipped_set(alone, set_writer, tmp_path):
    folder = set_writer(tmp_path / "root")
    lone = folder / TRAIN_LABELS
    lone.write_bytes(gzip.decompress((folder / f"{TRAIN_LABELS}.gz").read_bytes())[:-1] + b"\x00")
    labels = load_fashion_mnist(folder, say=str).train[1]
    assert labels[-1] == 9, "from the gzipped set"
    lone.unlink()
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load_fashion_mnist(folder, source="local", say=str).train[1], labels)


def test_incomplete_local_folder_is_named_and_left_alone(alone, said, set_writer):
    folder = set_writer(alone / "data" / "fashion-mnist")
    for path in folder.glob("train-*"):
        path.unlink()
    for path in folder.glob("*labels*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz has 0 bytes, too few.*Remove it and run"):
        load_fashion_mnist(say=said.append)
    assert said[0] == "FashionMNIST: data/fashion-mnist lacks train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz."
    with pytest.raises(DataError, match="no files in data/fashion-mnist"):
        load_fashion_mnist(source="local", say=str)
    assert len(list(folder.iterdir())) == 2


# ---- files that are damaged


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            TRAIN_IMAGES,
            numpy.zeros((19, 28, 28), numpy.uint8),
            r"holds 19 images, .* holds 20 labels. Remove it and run",
        ),
        (TRAIN_IMAGES, numpy.zeros((20, 32, 32), numpy.uint8), r"holds 20 images of 32 x 32.*of 28 x 28. Remove it"),
        (
            TRAIN_LABELS,
            numpy.arange(20, dtype=numpy.uint8),
            r"holds the label 19 at index 19. Labels go from 0 to 9. Rem",
        ),
        (
            TRAIN_IMAGES,
            numpy.zeros(20, numpy.uint8),
            r"magic number 0x00000801.*Remove it and run: velodrome data fetch",
        ),
    ],
)
@pytest.mark.parametrize("source", ["auto", "local"])
def test_wrong_local_files_are_an_error_and_not_another_source(alone, set_writer, name, array, message, source):
    folder = set_writer(alone / "data" / "fashion-mnist")
    write_idx(folder / f"{name}.gz", array)
    with pytest.raises(DataError, match=message):
        load_fashion_mnist(source=source, say=str)


def test_local_files_without_images_are_refused(alone, set_writer):
    folder = set_writer(alone / "data" / "fashion-mnist")
    write_idx(folder / f"{TRAIN_IMAGES}.gz", numpy.zeros((0, 28, 28), numpy.uint8))
    write_idx(folder / f"{TRAIN_LABELS}.gz", numpy.zeros(0, numpy.uint8))
    with pytest.raises(DataError, match="holds 0 images of 28 x 28. There must be at least one"):
        load_fashion_mnist(say=str)


def test_truncated_local_file_is_an_error_that_names_it(alone, set_writer):
    path = set_writer(alone / "data" / "fashion-mnist") / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"data/fashion-mnist/{TRAIN_IMAGES}.gz cannot be read: it is truncated"):
        load_fashion_mnist(say=str)


# ---- the download


def test_download_that_breaks_off_in_the_middle_is_completed_by_the_next_call(alone, online, tmp_path):
    late = online / "t10k-labels-idx1-ubyte.gz"
    content = late.read_bytes()
    late.write_bytes(content[:-1])
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz has SHA-256 .*published is .*thrown away"):
        fetch("fashion-mnist", root, source="download", say=str)
    names = sorted(path.name for path in root.iterdir())
    assert names == ["t10k-images-idx3-ubyte.gz", f"{TRAIN_IMAGES}.gz", f"{TRAIN_LABELS}.gz"]
    times = {name: (root / name).stat().st_mtime_ns for name in names}
    late.write_bytes(content)
    assert fetch("fashion-mnist", root, say=str) == root
    assert {name: (root / name).stat().st_mtime_ns for name in names} == times, "what was good is not fetched again"
    assert load_fashion_mnist(root, source="local", say=str).origin.startswith("FashionMNIST: 20 + 10 images")


def test_download_beside_a_damaged_file_is_refused(alone, online, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{TRAIN_LABELS}.gz").write_bytes(b"mine")
    for source in ("auto", "download"):
        with pytest.raises(DataError, match=f"{TRAIN_LABELS}.gz has 4 bytes, too few .*Remove it and run"):
            load_fashion_mnist(root, source=source, say=str)
    assert [path.read_bytes() for path in root.iterdir()] == [b"mine"]


def test_download_keeps_a_sound_file_that_was_compressed_anew_and_says_so(alone, online, said, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    labels = gzip.decompress((online / f"{TRAIN_LABELS}.gz").read_bytes())
    anew = gzip.compress(labels, compresslevel=1)
    (root / f"{TRAIN_LABELS}.gz").write_bytes(anew)
    load_fashion_mnist(root, source="download", say=said.append)
    assert (root / f"{TRAIN_LABELS}.gz").read_bytes() == anew
    assert f"{TRAIN_LABELS}.gz was there before and is kept; it is not the published file." in said[0]


def test_download_of_nothing_is_not_called_one(alone, online, set_writer, tmp_path):
    root = set_writer(tmp_path / "root")
    origin = load_fashion_mnist(root, source="download", say=str).origin
    assert origin == f"FashionMNIST: 20 + 10 images from {root}, where no file was missing"


def test_folder_in_the_place_of_a_file_is_refused(alone, online, tmp_path):
    (tmp_path / "root" / f"{TRAIN_LABELS}.gz").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read: Is a directory. Remove it"):
        load_fashion_mnist(tmp_path / "root", say=str)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_folder_that_cannot_be_written_to_ends_with_the_embedded_subset(alone, online, said, below):
    (alone / "file").write_bytes(b"mine")
    splits = load_fashion_mnist(alone / "file" / below, say=said.append)
    assert splits.origin.endswith("the embedded subset")
    assert "could not be downloaded" in said[2]
    assert [path.name for path in alone.iterdir()] == ["file"]


# ---- fetch


def test_fetch_returns_the_folder_and_says_the_place(alone, online, said):
    assert str(fetch("fashion-mnist", say=said.append)) == "data/fashion-mnist"
    assert said[-1] == "FashionMNIST: the official download, now in data/fashion-mnist"
    assert fetch("mnist", source="embedded", say=said.append) == embedded_folder("mnist")
    assert said[-1] == "MNIST: the embedded subset"


# ---- scripts/make_embedded.py


def _script():
    return runpy.run_path(str(Path(__file__).parents[4] / "scripts" / "make_embedded.py"))


def test_make_embedded_draws_the_same_real_images_on_every_run(tmp_path):
    script = _script()
    generator = numpy.random.default_rng(0)
    source = tmp_path / "all"
    source.mkdir()
    for split in ("train", "t10k"):
        write_idx(source / f"{split}-images-idx3-ubyte.gz", generator.integers(0, 256, (50, 28, 28), dtype=numpy.uint8))
        write_idx(source / f"{split}-labels-idx1-ubyte.gz", numpy.arange(50, dtype=numpy.uint8))
    written = []
    for target in (tmp_path / "a", tmp_path / "b"):
        script["main"].__globals__.update(TARGET=target, SIZES={"train": 30, "t10k": 10})
        script["main"](source)
        written.append({path.name: path.read_bytes() for path in sorted(target.iterdir())})
    assert written[0] == written[1]
    labels = read_idx(tmp_path / "a" / "train-labels-idx1-ubyte.gz", num_dims=1)
    images = read_idx(tmp_path / "a" / "train-images-idx3-ubyte.gz", num_dims=3)
    everything = read_idx(source / "train-images-idx3-ubyte.gz", num_dims=3)
    assert len(set(labels.tolist())) == len(labels) == 30
    assert (images == everything[labels]).all(), "labels are positions here: pictures and labels stay together"


def test_embedded_subset_is_what_the_script_makes_of_the_system_package(tmp_path):
    script = _script()
    folder = next((folder for folder in system_folders("fashion-mnist") if folder.is_dir()), None)
    if folder is None:
        pytest.skip("the system package dataset-fashion-mnist is not installed")
    script["main"].__globals__.update(TARGET=tmp_path)
    script["main"](folder)
    for path in embedded_folder("fashion-mnist").iterdir():
        num_dims = 3 if "images" in path.name else 1
        # Content, not bytes: another version of zlib may compress in another way.
        assert (read_idx(path, num_dims=num_dims) == read_idx(tmp_path / path.name, num_dims=num_dims)).all()
