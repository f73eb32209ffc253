"""Where answers are written: a file, the file behind a link, and nothing else; what cannot be written is refused before the work."""

from __future__ import annotations

import errno
import os
import stat
import tempfile

import pytest

from velodrome.advise.lr_curve import LRCurve
from velodrome.advise.outputs import check_place, write_answer
from velodrome.advise.tuning.writing import choose_path
from velodrome.errors import ArgumentError, RefusedError

CURVE = LRCurve((1e-3, 1e-2), (2.0, 1.0), (2.0, 1.5))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_and_stays(tmp_path):
    pipe = tmp_path / "lr.csv"
    os.mkfifo(pipe)
    with pytest.raises(RefusedError, match="is a named pipe, which a file would take the place of"):
        CURVE.to_csv(pipe)
    with pytest.raises(RefusedError, match="is a named pipe"):
        CURVE.plot(pipe)
    with pytest.raises(RefusedError, match="is a named pipe"):
        check_place(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["lr.csv"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="is a folder"):
        CURVE.to_csv(tmp_path)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, is_there):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    if is_there:
        target.write_text("old")
    link.symlink_to(target)
    CURVE.to_csv(link)
    assert link.is_symlink()
    assert target.read_text().splitlines() == ["lr,loss,smoothed_loss", "0.001,2.0,2.0", "0.01,1.0,1.5"]


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RefusedError, match="cannot be written"):
        write_answer(tmp_path / "a", b"x")


def test_a_missing_folder_is_refused_before_and_after(tmp_path):
    with pytest.raises(ArgumentError, match="no folder. Make it first"):
        check_place(tmp_path / "nowhere" / "lr.csv")
    with pytest.raises(ArgumentError, match=r"cannot be written to .*nowhere/lr.csv: No such file"):
        CURVE.to_csv(tmp_path / "nowhere" / "lr.csv")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_refused_before_anything_is_tried(tmp_path, monkeypatch, number):
    def refuse(**arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(RefusedError, match=f"cannot be written: {os.strerror(number)}. Nothing was tried"):
        choose_path("mine.toml", tmp_path / "t.toml")


def test_a_look_leaves_nothing_behind(tmp_path):
    check_place(tmp_path / "t.toml")
    assert list(tmp_path.iterdir()) == []
