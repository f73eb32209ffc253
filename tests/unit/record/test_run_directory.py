import json
import os
import re
import subprocess
import sys
from datetime import datetime

import pytest

from velodrome.errors import ArgumentError, RefusedError
from velodrome.record.run_directory import RunDirectory
from velodrome.record.surroundings import read_git_state


def read_run(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_create_makes_parents_and_leaves_the_folder_empty(tmp_path):
    run = RunDirectory.create(tmp_path / "runs" / "größe 🚲" / "x")
    assert run.path == tmp_path / "runs" / "größe 🚲" / "x"
    assert os.listdir(run.path) == []


def test_create_relative_path_stays_the_same_folder_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create("runs/x")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    run.start()
    assert run.path == tmp_path / "runs" / "x"
    assert (tmp_path / "runs" / "x" / "run.json").is_file()


def test_create_takes_a_symlink_to_a_folder_and_a_folder_with_other_files(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    RunDirectory.create(tmp_path / "link").start()
    assert sorted(os.listdir(tmp_path / "disk")) == ["lock.json", "notes.txt", "run.json"]


def test_start_then_finish_tells_what_the_run_is_and_how_it_ended(tmp_path):
    run = RunDirectory.create(tmp_path / "x")
    run.start({"label": "größe 🚲", "seed": 7, "lr": float("nan")})
    running = read_run(run.path)
    assert running["status"] == "running"
    assert running["finished"] is None
    assert (running["id"], running["pid"], running["command"]) == (run.id, os.getpid(), sys.argv)
    assert (running["label"], running["seed"], running["lr"]) == ("größe 🚲", 7, None)
    assert set(running["versions"]) == {"velodrome", "python", "torch", "numpy", "platform"}
    assert all(running["versions"].values())
    assert re.fullmatch(r"[0-9a-f]{12}", run.id)

    run.finish("stopped", {"stop_reason": "asked to", "id": "not yours"})
    ended = read_run(run.path)
    assert ended["status"] == "stopped"
    assert ended["stop_reason"] == "asked to"
    assert (ended["id"], ended["seed"], ended["started"]) == (run.id, 7, running["started"])
    started, finished = (datetime.fromisoformat(ended[key]) for key in ("started", "finished"))
    assert started <= finished
    assert started.utcoffset().total_seconds() == 0
    assert os.listdir(run.path) == ["run.json"]


def test_finish_with_an_unknown_status_names_the_known_ones(tmp_path):
    run = RunDirectory.create(tmp_path / "x")
    with pytest.raises(ArgumentError, match=r'"finished" is not a status .* Known: done, failed, stopped'):
        run.finish("finished")


def test_create_in_a_folder_with_a_run_is_refused_and_changes_nothing(tmp_path):
    RunDirectory.create(tmp_path / "x").start()
    before = (tmp_path / "x" / "run.json").read_bytes()
    with pytest.raises(RefusedError, match=r"x' holds a run already .* Give another run_dir") as caught:
        RunDirectory.create(tmp_path / "x")
    assert caught.value.exit_code == 3
    assert (tmp_path / "x" / "run.json").read_bytes() == before


def test_start_when_another_run_was_faster_is_refused(tmp_path):
    first, second = RunDirectory.create(tmp_path / "x"), RunDirectory.create(tmp_path / "x")
    first.start()
    with pytest.raises(RefusedError, match=r"is being written to by process \d+ .*nothing was changed"):
        second.start()
    first.release()
    with pytest.raises(RefusedError, match="holds a run already"):
        second.start()
    assert read_run(tmp_path / "x")["id"] == first.id


def test_log_appends_lines_of_any_text(tmp_path):
    run = RunDirectory.create(tmp_path / "x")
    run.log("größe 🚲")
    run.log(os.fsdecode(b"bad name: \xff"))
    lines = (run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["größe 🚲", "bad name: \\udcff"]


def git(*arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_git_state_is_the_commit_and_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_git_state() is None  # no checkout
    git("init")
    assert read_git_state() is None  # no commit yet
    (tmp_path / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    state = read_git_state()
    assert re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert state["dirty"] is False
    (tmp_path / "untracked.txt").write_text("b")
    assert read_git_state()["dirty"] is False
    (tmp_path / "a.txt").write_text("changed")
    assert read_git_state() == {"commit": state["commit"], "dirty": True}


def test_git_state_without_git_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_git_state() is None


def test_reopen_says_that_the_run_goes_on_and_keeps_who_it_is(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.start({"seed": 3})
    directory.finish("done", {"best": 1})
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    directory.reopen({"budget": 5})
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (after["status"], after["finished"], after["seed"], after["budget"]) == ("running", None, 3, 5)
    assert after["id"] == before["id"]
    assert after["started"] == before["started"]


def test_reopen_forgets_how_the_part_before_ended(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.start({"device": "cpu"})
    facts = {"error": "OSError: gone", "stop_reason": "an error", "progress": {"steps_done": 4}, "best": {"epoch": 1}}
    directory.finish("failed", {**facts, "saved_step": 4})
    directory.reopen({"seed": 1})
    under_way = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not under_way.keys() & {*facts, "saved_step"}
    assert (under_way["device"], under_way["seed"], under_way["status"]) == ("cpu", 1, "running")
    directory.finish("done", {"progress": {"steps_done": 8}})
    assert "error" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_reopen_of_a_folder_that_cannot_be_made_is_refused(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(ArgumentError, match="cannot be written to"):
        directory.reopen()


def test_open_takes_the_id_and_the_record_of_the_run(tmp_path):
    first = RunDirectory.create(tmp_path / "run")
    first.start({"seed": 3})
    first.finish("done", {"best": None})

    again = RunDirectory.open(tmp_path / "run")

    assert again.id == first.id
    assert (again.record["seed"], again.record["status"]) == (3, "done")
    again.reopen({"seed": 3})
    assert (read_run(tmp_path / "run")["status"], read_run(tmp_path / "run")["id"]) == ("running", first.id)


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "done"}', "[" * 100_000])
def test_open_refuses_a_record_that_says_nothing(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RefusedError, match=r"run\.json cannot be read: .*nothing was changed"):
        RunDirectory.open(tmp_path)


def test_open_refuses_a_folder_without_a_record(tmp_path):
    with pytest.raises(RefusedError, match=r"run\.json cannot be read"):
        RunDirectory.open(tmp_path / "none")


def test_open_refuses_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    first = RunDirectory.create(tmp_path / "run")
    first.start()
    first.finish("done")

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("velodrome.record.run_directory._probe", refuse)
    with pytest.raises(ArgumentError, match="cannot be written to: Permission denied"):
        RunDirectory.open(tmp_path / "run")
