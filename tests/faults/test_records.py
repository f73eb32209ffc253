"""FAULTS 6, 7, 15, 41, 42, 52: a disk, a stream or a name that fails costs records, never the training."""

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

import pytest

from velodrome.errors import ArgumentError
from velodrome.record.csv_sink import CsvSink
from velodrome.record.journal import Journal
from velodrome.record.run_directory import RunDirectory
from velodrome.record.sinks import make_sink

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are made with Linux's own devices")


def read_whole_lines(path):
    """Return the rows of a journal; a last line that is torn is none yet."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@contextlib.contextmanager
def files_end_at(num_bytes):
    """Let no file grow over `num_bytes`, as a full disk would: first a short write, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_journal_on_a_full_device_keeps_rows_warns_once_and_goes_on():
    said = []
    journal = Journal(Path("/dev/full"), say=said.append)
    for step in range(100):
        journal.write({"kind": "step", "step": step})
    assert len(journal.rows) == 100
    assert len(said) == 1
    assert "Cannot write /dev/full: No space left on device. Training goes on" in said[0]
    journal.close()
    assert len(said) == 2
    assert "100 rows never reached /dev/full" in said[1]


def test_journal_writes_what_is_missing_when_space_comes_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    said = []
    journal = Journal(path, say=said.append)
    for step in range(3):
        journal.write({"step": step})
    path.unlink()
    journal.write({"step": 3})
    assert read_whole_lines(path) == [{"step": step} for step in range(4)] == journal.rows
    journal.close()
    assert len(said) == 1


def test_journal_cut_short_inside_a_line_by_a_full_disk_repairs_that_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    said = []
    journal = Journal(path, say=said.append)
    for size in range(40, 160, 7):  # the disk fills up at many places within a line
        with files_end_at(size):
            journal.write({"step": size, "name": "größe"})
        known = read_whole_lines(path)  # always whole lines, and at most one torn at the end
        assert known == journal.rows[: len(known)]
    journal.write({"step": -1})
    journal.close()
    assert read_whole_lines(path) == journal.rows
    assert len(path.read_bytes().splitlines()) == len(journal.rows) == 19
    assert len(said) == 1


def test_journal_in_a_folder_that_was_deleted_warns_and_goes_on(tmp_path):
    said = []
    journal = Journal(tmp_path / "gone" / "metrics.jsonl", say=said.append)
    journal.write({"step": 1})
    journal.write({"step": 2})
    assert len(said) == 1
    assert "No such file or directory" in said[0]
    (tmp_path / "gone").mkdir()
    journal.close()
    assert read_whole_lines(tmp_path / "gone" / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_csv_on_a_full_disk_is_switched_off_and_the_journal_goes_on(tmp_path):
    said = []
    (tmp_path / "metrics.csv").mkdir()  # nothing can be put in this place
    journal = Journal(tmp_path / "metrics.jsonl", [CsvSink(tmp_path / "metrics.csv")], say=said.append)
    for epoch in range(3):
        journal.write({"kind": "epoch", "epoch": epoch})
    journal.close()
    assert len(read_whole_lines(tmp_path / "metrics.jsonl")) == 3
    assert len(said) == 1
    assert "CsvSink raised IsADirectoryError" in said[0]
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.jsonl"]


def test_tensorboard_on_a_full_disk_is_switched_off_with_one_line_and_no_traceback(tmp_path, capfd):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    said = []
    sink = make_sink("tensorboard", tmp_path)
    journal = Journal(None, [sink], say=said.append)
    journal.write({"kind": "epoch", "step": 1, "train/loss": 1.0})
    with files_end_at(150):
        for step in range(2, 30):
            journal.write({"kind": "epoch", "step": step, "train/loss": 1.0})
    journal.close()
    assert len(journal.rows) == 29
    assert len(said) == 1
    assert "TensorBoardSink raised OSError" in said[0]
    assert capfd.readouterr() == ("", "")


def test_run_directory_where_a_file_stands_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "taken" / "runs" / "x"):
        with pytest.raises(ArgumentError, match=r"run_dir='.*taken.*' cannot be written to: .* Give another run_dir"):
            RunDirectory.create(path)
    assert (tmp_path / "taken").read_text() == "x"


@pytest.mark.parametrize("path", ["", "/dev/full/run", "/proc/velodrome/run", "\0", "~no-such-user-here/run"])
def test_run_directory_that_cannot_be_made_is_refused(path):
    with pytest.raises(ArgumentError, match="cannot be written to"):
        RunDirectory.create(path)


def test_run_directory_with_a_dangling_link_or_a_long_name_leaves_nothing_half_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", tmp_path / "new" / "deeper" / ("x" * 300)):
        with pytest.raises(ArgumentError, match="cannot be written to"):
            RunDirectory.create(path)
    assert os.listdir(tmp_path) == ["link"]


def test_run_directory_on_a_full_disk_is_refused_and_removed(tmp_path):
    with files_end_at(0), pytest.raises(ArgumentError, match="cannot be written to: File too large"):
        RunDirectory.create(tmp_path / "runs" / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_run_directory_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for path in (tmp_path / "locked", tmp_path / "locked" / "x"):
        with pytest.raises(ArgumentError, match="cannot be written to: Permission denied"):
            RunDirectory.create(path)


def test_start_on_a_disk_that_filled_up_meanwhile_is_refused_with_nothing_left(tmp_path):
    run = RunDirectory.create(tmp_path / "x")
    with files_end_at(20), pytest.raises(ArgumentError, match="cannot be written to: File too large"):
        run.start()
    assert os.listdir(run.path) == []


def test_finish_and_log_on_a_full_disk_warn_and_keep_the_old_record(tmp_path):
    said = []
    run = RunDirectory.create(tmp_path / "x", say=said.append)
    run.start()
    with files_end_at(20):
        for _ in range(3):
            run.log("x" * 100)
        run.finish("done")
    assert json.loads((run.path / "run.json").read_text())["status"] == "running"
    assert len(said) == 2
    assert "log.txt: File too large. Training goes on" in said[0]
    assert "run.json: File too large. The run is done" in said[1]
