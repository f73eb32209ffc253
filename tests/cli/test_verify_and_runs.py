"""`velodrome verify`, `runs` and `show`: what is there, what is wrong with it, and what to do next."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from datetime import UTC, datetime, timedelta

import pytest

from velodrome.record.run_lock import RunLock


@pytest.fixture
def run(project, velodrome):
    """A run of two epochs, 8 steps."""
    answer = velodrome("train", "mine.toml", "--name", "first", "-q")
    assert answer.code == 0, answer.err
    return project / "runs" / "first"


def test_verify_of_a_good_run_lists_its_checkpoints_and_the_next_command(velodrome, run):
    answer = velodrome("verify", "runs/first")
    assert answer.code == 0
    assert "Step 8" in answer.out
    assert "all hashes agree, best" in answer.out
    assert "goes on from step-00000008" in answer.out
    assert "All is well." in answer.out
    assert "Next: velodrome eval runs/first --recipe runs/first/recipe.toml" in answer.out


def test_the_command_that_verify_names_works_for_a_recipe_with_the_users_code(velodrome, run):
    command = velodrome("verify", "runs/first").out.partition("Next: velodrome ")[2]
    done = velodrome(*shlex.split(command))
    assert done.code == 0, done.err
    assert "loss" in done.out


def test_verify_names_no_recipe_where_no_code_is_the_users_and_no_command_where_there_is_no_recipe(velodrome, project):
    assert velodrome("train", "mnist-mlp", "data.source=embedded", "train.epochs=1", "--name", "plain", "-q").code == 0
    assert "Next: velodrome eval runs/plain\n" in velodrome("verify", "runs/plain").out
    (project / "runs" / "plain" / "recipe.toml").unlink()  # as of a run that was begun in Python
    assert "Next:" not in velodrome("verify", "runs/plain").out


def test_verify_json_says_the_same(velodrome, run):
    found = velodrome("verify", "--json", "runs/first").json
    assert (found["ok"], found["status"], found["best_step"], found["problems"]) == (True, "done", 8, [])
    assert [each["step"] for each in found["checkpoints"]] == [8, 4]
    assert all(each["resumable"] for each in found["checkpoints"])
    assert found["journal"] == {"rows": 2, "last_step": 8}
    assert found["resume_from"].endswith("step-00000008")
    assert found["next"] == "velodrome eval runs/first --recipe runs/first/recipe.toml"


def test_verify_finds_a_flipped_bit_and_says_what_is_left(velodrome, run):
    file = run / "checkpoints" / "step-00000008" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    answer = velodrome("verify", "runs/first")
    assert answer.code == 3
    assert "Step 8   DAMAGED, best" in answer.out
    assert "model.safetensors is damaged: its SHA-256 begins with" in answer.out
    assert "goes on from step-00000004" in answer.out
    assert "1 problem." in answer.out
    assert "Next: velodrome eval runs/first --recipe runs/first/recipe.toml --weights last" in answer.out


def test_verify_lists_every_damaged_file_not_only_the_first(velodrome, run):
    folder = run / "checkpoints" / "step-00000008"
    for name in ("model.safetensors", "optimizer.safetensors"):
        (folder / name).write_bytes(b"x")
    (folder / "state.json").unlink()
    (folder / "more.txt").write_text("")

    problems = velodrome("verify", "runs/first", "--json").json["problems"]

    assert len(problems) == 4
    assert sum("it is torn" in each for each in problems) == 2
    assert any("state.json cannot be read: No such file" in each for each in problems)
    assert any("more.txt, which its manifest does not list" in each for each in problems)


def test_verify_of_a_checkpoint_folder(velodrome, run):
    good, bad = sorted((run / "checkpoints").glob("step-*"))
    answer = velodrome("verify", good)
    assert answer.code == 0
    assert "step 4" in answer.out
    assert "all hashes agree; a run can go on from it." in answer.out
    (bad / "manifest.json").write_text("{")
    answer = velodrome("verify", bad, "--json")
    assert (answer.code, answer.json["ok"], answer.json["kind"]) == (3, False, "checkpoint")


def test_verify_sees_a_journal_that_is_too_short_and_one_that_folds_back(velodrome, run):
    file = run / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first)
    answer = velodrome("verify", "runs/first")
    assert answer.code == 3
    assert f"has {len(first):,} bytes, and had {len(first) + len(second):,} when a checkpoint was made" in answer.out
    file.write_bytes(second + first)
    answer = velodrome("verify", "runs/first")
    assert answer.code == 3
    assert "goes back to step 4 after a later one" in answer.out
    file.unlink()
    assert "is missing, and a checkpoint says that it had" in velodrome("verify", "runs/first").out


def test_verify_sees_a_best_checkpoint_that_is_gone(velodrome, run):
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    answer = velodrome("verify", "runs/first")
    assert answer.code == 3
    assert "The best checkpoint, step 8, is not there" in answer.out


def test_verify_of_a_killed_run_names_the_command_that_goes_on(velodrome, run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running", "finished": None}))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "st')  # torn by the kill: no fault
    (run / "checkpoints" / ".tmp-step-00000012-0123-4567").mkdir()
    answer = velodrome("verify", "runs/first")
    assert answer.code == 0
    assert "killed" in answer.out
    assert "1 leftovers of saves that were cut short" in answer.out
    assert "Next: velodrome resume runs/first --recipe runs/first/recipe.toml" in answer.out


def test_verify_of_a_run_whose_record_is_empty_says_that_it_is_refused(velodrome, run):
    (run / "run.json").write_bytes(b"")
    answer = velodrome("verify", run)
    assert answer.code == 3
    assert "run.json cannot be read" in answer.out + answer.err
    assert ["Resume", "refused"] in [line.split() for line in (answer.out + answer.err).splitlines()]


def test_verify_of_a_run_under_way_and_of_another_runs_checkpoint(velodrome, run):
    lock = RunLock(run)
    lock.acquire()
    answer = velodrome("verify", "runs/first")
    lock.release()
    assert answer.code == 0
    assert f"under way: process {os.getpid()} on " in answer.out
    assert "Next:" not in answer.out

    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "id": "another"}))
    answer = velodrome("verify", "runs/first")
    assert "belongs to run " in answer.out


def test_verify_of_something_else_is_refused(project, velodrome):
    answer = velodrome("verify", "mine.toml")
    assert answer.code == 3
    assert "is neither a run directory, which holds run.json, nor a checkpoint folder" in answer.err
    assert velodrome("verify", "nowhere").code == 3
    assert velodrome("verify").code == 2


def test_verify_help_shows_the_form_without_a_name(velodrome):
    assert "RUN" in velodrome("verify", "--help").out
    assert "Check all files of a run" in velodrome("verify", "runs/x", "--help").out


def test_a_run_of_any_name_can_be_verified(velodrome, run):
    for name in ("run", "RUN", "resume", "-x"):
        shutil.copytree(run, run.parent.parent / name)
        assert velodrome("verify", f"./{name}").code == 0
    assert velodrome("verify", "run").code == velodrome("verify", "RUN").code == 0


def set_started(run, **ago):
    record = json.loads((run / "run.json").read_text())
    record["started"] = (datetime.now(UTC) - timedelta(**ago)).isoformat(timespec="seconds")
    (run / "run.json").write_text(json.dumps(record))
    return record


def test_runs_lists_the_newest_first_with_what_became_of_them(velodrome, run):
    folder = run.parent
    for name in ("killed", "failed", "held", "broken", "empty", "odd"):
        shutil.copytree(run, folder / name)
    set_started(run, days=3)
    killed = set_started(folder / "killed", hours=2)
    (folder / "killed" / "run.json").write_text(json.dumps({**killed, "status": "running", "progress": None}))
    failed = set_started(folder / "failed", minutes=5)
    (folder / "failed" / "run.json").write_text(
        json.dumps({**failed, "status": "failed", "command": ["/bin/velodrome", "train", "x/mine.toml", "a.b=1"]})
    )
    set_started(folder / "held", minutes=1)
    (folder / "broken" / "run.json").write_text("{")
    (folder / "empty" / "run.json").unlink()
    (folder / "odd" / "run.json").write_text(
        json.dumps({**failed, "status": "failed", "command": ["a\x1b[31m"], "started": "soon"})
    )
    (folder / "no run").mkdir()
    lock = RunLock(folder / "held")
    lock.acquire()

    answer = velodrome("runs")
    found = velodrome("runs", "runs", "--json").json["runs"]
    lock.release()

    assert answer.code == 0
    by_name = {os.path.basename(each["path"]): each for each in found}
    assert {name: each["status"] for name, each in by_name.items()} == {
        "first": "done", "killed": "killed", "failed": "failed", "held": "under way", "broken": "broken", "empty": "broken", "odd": "failed",
    }  # fmt: skip
    order = [os.path.basename(each["path"]) for each in found]
    assert [name for name in order if name in ("first", "killed", "failed", "held")] == [
        "held",
        "failed",
        "killed",
        "first",
    ]
    assert (by_name["first"]["epochs_done"], by_name["first"]["steps_done"]) == (2, 8)
    assert by_name["failed"]["recipe"] == "mine.toml"
    assert (by_name["killed"]["epochs_done"], by_name["killed"]["steps_done"]) == (2, 8)  # from the journal
    assert by_name["first"]["monitor"] == "val/loss"
    assert "3 days ago" in answer.out
    assert "run.json cannot be read" in by_name["broken"]["problems"][0]
    assert "broken: " in answer.out
    assert (
        "A run that was killed goes on with: velodrome resume runs/killed --recipe runs/killed/recipe.toml"
        in answer.out
    )
    assert "\x1b" not in answer.out


def test_runs_without_any_and_without_a_folder(project, velodrome):
    (project / "runs").mkdir()
    answer = velodrome("runs")
    assert (answer.code, "There is no run in runs. Start one: velodrome train" in answer.out) == (0, True)
    answer = velodrome("runs", "nowhere")
    assert (answer.code, "nowhere cannot be listed: No such file" in answer.err) == (2, True)


def test_show_tells_what_a_run_is(velodrome, run):
    answer = velodrome("show", "runs/first")
    assert answer.code == 0
    for text in ("done", "All epochs are done.", "2 epochs, 8 steps", "val/loss", "torch ", "Started"):
        assert text in answer.out
    found = velodrome("show", "runs/first", "--json").json
    assert found["record"]["id"] == json.loads((run / "run.json").read_text())["id"]
    assert found["last_row"]["step"] == 8
    assert velodrome("show", "nowhere").code == 3


def test_show_of_a_broken_run_says_what_is_wrong(velodrome, run):
    (run / "run.json").write_text("[]")
    answer = velodrome("show", "runs/first")
    assert answer.code == 0
    assert "Problem: " in answer.out
    assert "it is no table" in answer.out


def test_runs_does_not_read_whole_journals(velodrome, run):
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(6 << 30)
    began = time.monotonic()
    assert velodrome("runs").code == 0
    assert time.monotonic() - began < 60
