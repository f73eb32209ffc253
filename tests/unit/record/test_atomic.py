import os

import pytest

from velodrome.record.atomic import create_file, replace_file


@pytest.mark.parametrize("durable", [False, True])
def test_replace_file_puts_all_of_it_in_place_and_leaves_nothing_else(tmp_path, durable):
    path = tmp_path / "a.json"
    replace_file(path, b"old", durable=durable)
    replace_file(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_replace_file_that_cannot_be_put_in_place_leaves_the_old_and_no_temp(tmp_path):
    folder = tmp_path / "a.json"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(folder, b"new")
    assert os.listdir(tmp_path) == ["a.json"]
    assert folder.is_dir()


def test_create_file_refuses_what_is_there(tmp_path):
    path = tmp_path / "run.json"
    create_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["run.json"]


def test_create_file_without_hard_links_still_creates_and_still_refuses(tmp_path, monkeypatch):
    def no_links(source, target):
        raise PermissionError("this file system has no hard links")

    monkeypatch.setattr(os, "link", no_links)
    create_file(tmp_path / "run.json", b"first")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "run.json", b"second")
    assert (tmp_path / "run.json").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["run.json"]
