import pytest

from velodrome.checkpoint.files import Files, make_folder, remove_tree, write_atomically


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a.json", b"old")
    write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_write_atomically_failure_keeps_the_old_file_and_names_the_new_one(tmp_path):
    class Full(Files):
        def write(self, descriptor, data):
            raise OSError(28, "No space left on device")

    (tmp_path / "a.json").write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left on device: .*a\.json"):
        write_atomically(tmp_path / "a.json", b"new", files=Full())
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_make_folder_creates_parents_and_accepts_what_exists(tmp_path):
    make_folder(Files(), tmp_path / "a" / "b")
    make_folder(Files(), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_remove_tree_does_not_follow_links(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "gone" / "inner").mkdir(parents=True)
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    remove_tree(Files(), tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_a_disk_that_takes_nothing_is_an_error_and_not_an_endless_loop(tmp_path):
    class Full(Files):
        def write(self, descriptor, data):
            return 0

    with pytest.raises(OSError, match="accepted no byte"):
        write_atomically(tmp_path / "file", b"data", files=Full())
    assert list(tmp_path.iterdir()) == []
