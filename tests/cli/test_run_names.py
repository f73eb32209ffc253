from __future__ import annotations

import pytest

from velodrome.cli.run_names import choose_run_dir
from velodrome.errors import RefusedError


def test_choose_run_dir_default_names_differ_and_begin_with_the_recipe(tmp_path):
    first, second = (choose_run_dir(tmp_path, None, "mnist-mlp") for _ in range(2))
    assert first != second
    assert first.name.startswith("mnist-mlp-")
    assert not first.exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "CON", "-rf", "über🚲", "x" * 300, "..", ""])
def test_choose_run_dir_stays_one_folder_below_out(tmp_path, name):
    path = choose_run_dir(tmp_path, name, "r")
    assert path.parent == tmp_path
    assert path.name.isascii()
    assert 0 < len(path.name) < 100
    assert not path.name.startswith((".", "-"))


def test_choose_run_dir_empty_folder_is_free_and_a_full_one_is_not(tmp_path):
    (tmp_path / "a").mkdir()
    assert choose_run_dir(tmp_path, "a", "r") == tmp_path / "a"
    (tmp_path / "a" / "file").touch()
    with pytest.raises(RefusedError, match="exists already, and a run never writes over another"):
        choose_run_dir(tmp_path, "a", "r")


def test_choose_run_dir_symlink_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="exists already"):
        choose_run_dir(tmp_path, "a", "r")
