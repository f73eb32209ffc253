import time

import pytest

from velodrome.data.sources import load_fashion_mnist, load_mnist
from velodrome.data.sources.places import find_files, system_folders, unpack_system_package
from velodrome.errors import DataError

NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def package(commands, set_writer, tmp_path):
    """A system whose package dataset-fashion-mnist can be fetched; returns the folder with its content."""
    content = set_writer(tmp_path / "package" / "usr" / "share" / "datasets" / "fashion-mnist", seed=3)
    commands(
        "apt-get", 'test "$1 $2 $3" = "download -qq dataset-fashion-mnist" && touch dataset-fashion-mnist_1_all.deb'
    )
    commands("dpkg-deb", f'test -f "$2" && mkdir "$3" && cp -r {tmp_path}/package/usr "$3/"')
    return content


def test_system_package_is_unpacked_into_the_local_folder(alone, package):
    said = []
    splits = load_fashion_mnist(say=said.append)
    assert said[0] == "FashionMNIST: asking the system's packages for dataset-fashion-mnist ..."
    assert splits.origin == (
        "FashionMNIST: 20 + 10 images from the system package dataset-fashion-mnist, unpacked into data/fashion-mnist"
    )
    assert {path.name for path in (alone / "data" / "fashion-mnist").iterdir()} == {f"{name}.gz" for name in NAMES}
    assert load_fashion_mnist(say=str).origin.endswith("the local folder data/fashion-mnist")


def test_mnist_has_no_package_and_asks_for_none(alone, package):
    with pytest.raises(DataError, match="MNIST has no files in"):
        load_mnist(source="system", say=str)


def test_package_that_lacks_a_file_counts_as_none(alone, package):
    (package / f"{NAMES[0]}.gz").unlink()
    said = []
    assert load_fashion_mnist(say=said.append).origin.endswith("the embedded subset")
    assert not (alone / "data" / "fashion-mnist").exists()


@pytest.mark.parametrize(
    ("apt", "dpkg"),
    [
        ("exit 100", "exit 0"),
        ("exit 0", "exit 0"),
        ("touch a.deb", "exit 2"),
        ("touch a.deb", "exit 0"),
        ("touch a.deb", "mkdir -p unpacked/usr/share/datasets/fashion-mnist"),
        (None, "exit 0"),
        ("exit 0", None),
    ],
)
def test_package_that_cannot_be_had_leaves_nothing(alone, commands, apt, dpkg):
    for name, body in (("apt-get", apt), ("dpkg-deb", dpkg)):
        if body is not None:
            commands(name, body)
    assert unpack_system_package("dataset-fashion-mnist", "fashion-mnist", alone / "to", names=NAMES) is False
    assert not (alone / "to").exists()


@pytest.mark.parametrize("apt", ["sleep 30", "sleep 30 & wait", "touch a.deb"])
def test_package_tools_that_hang_are_given_up_after_the_limit_with_their_children(alone, commands, apt):
    commands("apt-get", apt)
    commands("dpkg-deb", "sleep 30")
    start = time.monotonic()
    assert not unpack_system_package("dataset-fashion-mnist", "fashion-mnist", alone / "to", timeout_s=0.3)
    assert time.monotonic() - start < 5


def test_package_script_that_cannot_run_counts_as_none(alone, commands, tmp_path):
    commands("dpkg-deb", "exit 0")
    commands("apt-get", "exit 0")
    (tmp_path / "bin" / "apt-get").write_text("#!/no/such/interpreter\n")
    assert not unpack_system_package("dataset-fashion-mnist", "fashion-mnist", alone / "to")


def test_package_completes_a_folder_and_replaces_nothing(alone, package):
    target = alone / "to"
    target.mkdir()
    (target / f"{NAMES[0]}.gz").write_bytes(b"mine")
    assert unpack_system_package("dataset-fashion-mnist", "fashion-mnist", target, names=NAMES)
    assert (target / f"{NAMES[0]}.gz").read_bytes() == b"mine"
    assert {path.name for path in target.iterdir()} == {f"{name}.gz" for name in NAMES}


def test_package_for_a_folder_that_cannot_be_written_to_ends_with_the_embedded_subset(alone, package):
    (alone / "file").write_bytes(b"mine")
    said = []
    assert load_fashion_mnist(alone / "file", say=said.append).origin.endswith("the embedded subset")
    assert said[1] == f"FashionMNIST: {alone / 'file'} cannot be written to (File exists)."


def test_system_folders_follow_xdg_data_dirs_without_doubles(monkeypatch):
    monkeypatch.setenv("XDG_DATA_DIRS", "/a::/usr/share:/a")
    assert list(map(str, system_folders("x"))) == [
        "/a/datasets/x",
        "/usr/share/datasets/x",
        "/usr/local/share/datasets/x",
    ]
    monkeypatch.delenv("XDG_DATA_DIRS")
    assert list(map(str, system_folders("x"))) == ["/usr/local/share/datasets/x", "/usr/share/datasets/x"]


def test_find_files_takes_the_first_folder_that_has_all(tmp_path):
    for folder, names in {"a": ["one"], "b": ["one", "two.gz"], "c": ["one.gz", "two.gz"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    folders = [tmp_path / name for name in ("none", "a", "b", "c")]
    assert find_files(folders, ["one", "two"]) == {"one": tmp_path / "b" / "one", "two": tmp_path / "b" / "two.gz"}
    assert find_files([tmp_path / "a"], ["one", "two"]) is None
