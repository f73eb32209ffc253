"""`velodrome compare`: runs beside one another, with numbers that can be checked by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from support.pages import harmless
from velodrome.cli.main import run as call

VERSIONS = {"velodrome": "0.1", "torch": "2.13.0"}


def write_run(folder, *, losses, lr=0.1, accuracies=(), monitor=None, mode="auto", git="abc", seconds=2.0, **record):
    """Write the files of a run of one epoch a loss, ten steps each."""
    folder.mkdir(parents=True)
    num = len(losses)
    facts = {
        "id": "x", "status": "done", "started": "2026-11-22T05:33:39+00:00", "command": ["velodrome", "train", "mine.toml"], "versions": VERSIONS,
        "git": {"commit": git, "dirty": False}, "host": "here", "device": "cpu", "processes": 1,
        "progress": {"epochs_done": num, "steps_done": 10 * num, "samples_done": 40 * num, "seconds": seconds},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**facts, **record}))
    rows = []
    for epoch, loss in enumerate(losses, 1):
        row = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "lr": lr, "train/loss": loss / 2, "samples_per_s": 100.0 * epoch, "val/loss": loss}  # fmt: skip
        rows.append({**row, **({"val/accuracy": accuracies[epoch - 1]} if accuracies else {})})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bill = {
        "event": "bill",
        "wall_s": seconds,
        "parts_s": {"forward": seconds * 0.75, "other": seconds * 0.25},
        "batches": 10,
    }
    (folder / "events.jsonl").write_text(json.dumps(bill) + "\n")
    checkpoint = f'\n[checkpoint]\nmode = "{mode}"\n' + (f'monitor = "{monitor}"\n' if monitor else "")
    (folder / "recipe.toml").write_text(f'[optimizer]\nname = "sgd"\nlr = {lr}\n{checkpoint}')
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs a and b: b has ten times the learning rate, one epoch more, and gets worse at last."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", losses=[1.0, 0.5])
    write_run(tmp_path / "b", losses=[0.8, 0.25, 0.75], lr=1.0, seconds=4.0)
    return tmp_path


@pytest.fixture
def compare(runs, capfd):
    def answer(*arguments):
        capfd.readouterr()
        code = call(["compare", *map(str, arguments)])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return captured.out

    return answer


def in_json(compare, *arguments):
    return json.loads(compare(*arguments, "--json"))


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_what_differs_and_what_is_equal_is_said(compare):
    found = in_json(compare, "a", "b")
    assert found["differences"] == [{"name": "recipe: optimizer.lr", "values": [0.1, 1.0]}]
    assert found["equal"] == ["command", "versions", "git", "machine"]
    text = compare("a", "b")
    assert "recipe: optimizer.lr  0.1   1.0" in text
    assert "Equal: command, versions, git, machine." in text


def test_numbers_are_beside_one_another_with_difference_and_the_better_one(compare):
    metrics = by_name(in_json(compare, "a", "b")["metrics"])
    assert metrics["val/loss, last"] == {
        "name": "val/loss, last",
        "values": [0.5, 0.75],
        "direction": "min",
        "better": "a",
    }
    assert metrics["val/loss, best"] == {
        "name": "val/loss, best",
        "values": [0.5, 0.25],
        "direction": "min",
        "better": "b",
    }
    assert metrics["train/loss, last"]["values"] == [0.25, 0.375]
    lines = [line.split() for line in compare("a", "b").splitlines()]
    assert ["val/loss,", "last", "0.5000", "0.7500", "+0.2500", "a"] in lines
    assert ["val/loss,", "best", "0.5000", "0.2500", "-0.2500", "b"] in lines


def test_time_speed_and_bill_are_compared(compare):
    found = in_json(compare, "a", "b")
    effort, bill = by_name(found["time"]), by_name(found["bill"])
    assert [effort[name]["values"] for name in ("epochs", "steps", "samples", "seconds")] == [
        [2, 3],
        [20, 30],
        [80, 120],
        [2, 4],
    ]
    assert effort["samples/s, median epoch"]["values"] == [150, 200]  # of 100, 200; of 100, 200, 300
    assert effort["samples/s, median epoch"]["better"] == "b"
    assert effort["seconds"]["better"] is None  # a longer run is not a worse one
    assert [bill[name]["values"] for name in ("forward and loss", "other", "wall time")] == [[1.5, 3], [0.5, 1], [2, 4]]


def test_a_run_is_equal_to_its_copy(compare, runs):
    shutil.copytree(runs / "a", runs / "copy")
    found = in_json(compare, "a", "copy")
    assert found["differences"] == []
    assert {row["better"] for row in found["metrics"] + found["time"]} == {None}
    assert "Equal: recipe, command, versions, git, machine." in compare("a", "copy")


def test_the_monitor_of_the_recipe_says_what_is_better_of_a_name_that_does_not(runs, compare):
    for name, value in (("c", 1.0), ("d", 2.0)):
        write_run(runs / name, losses=[1.0], monitor="val/quantity", mode="max")
        row = {"kind": "epoch", "epoch": 1, "step": 10, "val/quantity": value, "val/other": value}
        (runs / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    metrics = by_name(in_json(compare, "c", "d")["metrics"])
    assert metrics["val/quantity, best"]["better"] == "d"
    assert (metrics["val/other, last"]["direction"], metrics["val/other, last"]["better"]) == (None, None)


def test_three_runs_have_no_difference_but_a_better_one(compare, runs):
    write_run(runs / "c", losses=[0.1], lr=0.5)
    found = in_json(compare, "a", "b", "c")
    assert found["differences"][0]["values"] == [0.1, 1.0, 0.5]
    assert by_name(found["metrics"])["val/loss, last"]["better"] == "c"
    assert "difference" not in compare("a", "b", "c")


@pytest.mark.parametrize(
    ("status", "said"),
    [("failed", "failed: its numbers"), ("running", "was killed"), ("stopped", "was stopped before")],
)
def test_a_run_that_is_not_done_is_said(compare, runs, status, said):
    write_run(runs / "c", losses=[0.1], status=status)
    assert f"Note: c {said}" in compare("a", "c")


def test_a_broken_run_is_compared_as_far_as_it_can_be_read(compare, runs):
    (runs / "b" / "run.json").write_text("{")
    (runs / "b" / "recipe.toml").unlink()
    text = compare("a", "b")
    assert "Note: b is broken: its record cannot be read." in text
    assert "b has no recipe that can be read" in text
    assert ["val/loss,", "last", "0.5000", "0.7500", "+0.2500", "a"] in [line.split() for line in text.splitlines()]


def test_of_three_runs_those_with_recipes_are_compared(compare, runs):
    write_run(runs / "c", losses=[1.0])
    (runs / "c" / "recipe.toml").write_text("[torn")
    found = in_json(compare, "a", "b", "c")
    assert found["differences"] == [{"name": "recipe: optimizer.lr", "values": [0.1, 1.0, None]}]
    assert "c has no recipe that can be read: of recipes only the others are compared." in found["notes"]


def test_rows_that_are_missing_are_said(compare, runs):
    (runs / "b" / "metrics.jsonl").write_text("")
    assert "Note: b: metrics.jsonl has the rows of 0 of 3 epochs." in compare("a", "b")


def test_the_bill_of_a_part_is_said(compare, runs):
    bill = (runs / "a" / "events.jsonl").read_text()
    (runs / "a" / "events.jsonl").write_text('{"event": "went_on", "step": 10}\n' + bill)
    assert "Note: a: its bill is of the part since it went on last." in compare("a", "b")


def test_a_device_is_never_replaced_by_a_page(runs, capfd):
    import os

    os.mkfifo(runs / "pipe")
    for command in (["compare", "a", "b"], ["report", "a"]):
        assert call([*command, "--out", "pipe", "--force"]) == 3
        assert "pipe is no plain file. Give another --out." in capfd.readouterr().err


def test_nan_is_never_better(compare, runs):
    row = {"kind": "epoch", "epoch": 1, "step": 10, "val/loss": None}
    (runs / "b" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    found = by_name(in_json(compare, "a", "b")["metrics"])["val/loss, last"]
    assert (found["values"], found["better"]) == ([0.5, None], None)


def test_folders_of_one_name_are_called_by_their_paths(compare, runs):
    for parent in ("x", "y"):
        shutil.copytree(runs / "a", runs / parent / "a")
    assert [run["name"] for run in in_json(compare, "x/a", "y/a")["runs"]] == ["x/a", "y/a"]
    assert [run["name"] for run in in_json(compare, "a", "a")["runs"]] == ["a (1)", "a (2)"]


def test_a_name_cannot_steer_the_terminal(compare, runs):
    write_run(runs / "c", losses=[0.1], lr=0.1, git="\x1b[2J\u202e")
    text = compare("a", "c")
    assert "\\x1b[2J\\u202e" in text
    assert "\x1b" not in text


def test_the_page_has_the_same_numbers_and_the_curves_of_all(compare, runs):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    assert "Page: both.html" in compare("a", "b", "--out", "both.html")
    page = harmless((runs / "both.html").read_text("utf-8"))
    assert page.row("recipe: optimizer.lr") == ["0.1", "1.0"]
    assert page.row("val/loss, last") == ["0.5000", "0.7500", "+0.2500", "a"]
    assert page.row("steps") == ["20", "30", "+10", ""]
    assert page.row("wall time") == ["2.000", "4.000", "+2.000"]
    assert [tag for tag, _ in page.elements].count("img") == 1


def test_markup_in_names_is_text_in_the_page(compare, runs):
    name = "<script>alert(1)<!-- \u202e$x$"
    write_run(runs / name, losses=[0.1, 0.2], git=name, error=name, status="failed")
    compare("a", runs / name, "--out", "page.html")
    source = (runs / "page.html").read_text("utf-8")
    assert harmless(source).text.count("<script>alert(1)<!-- \\u202e$x$") >= 5
    assert "<script" not in source


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a"], 2, "1 run was given. From 2 to 12 can be compared. Name them: velodrome compare runs/a runs/b"),
        (["a"] * 13, 2, "13 runs were given"),
        (["a", "nowhere"], 3, "nowhere holds no run"),
        (["a", "b", "--out", "no/where.html"], 2, "cannot be written to no/where.html"),
        ([], 2, "Missing argument"),
    ],
)
def test_wrong_arguments_have_the_exit_codes_of_all_verbs(runs, capfd, arguments, code, said):
    assert call(["compare", *arguments]) == code
    assert said in capfd.readouterr().err


def test_evaluations_of_any_name_are_compared(compare, runs):
    for name, value in (("c", 0.25), ("d", 0.5)):
        write_run(runs / name, losses=[1.0])
        row = {"kind": "epoch", "epoch": 1, "step": 10, "test/f1": value, "lr/head": value}
        (runs / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    metrics = by_name(in_json(compare, "c", "d")["metrics"])
    assert set(metrics) == {"test/f1, last", "test/f1, best"}
    assert metrics["test/f1, best"]["better"] == "d"


def test_numbers_of_hundreds_of_digits_are_no_reason_to_fail(compare, runs):
    huge = 10**400
    row = {"kind": "epoch", "epoch": huge, "step": huge, "val/loss": huge, "samples_per_s": huge}
    (runs / "b" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    bill = {"event": "bill", "wall_s": 1.0, "parts_s": {"data_wait": 1.0}, "batches": huge, "workers": huge}
    (runs / "b" / "events.jsonl").write_text(json.dumps(bill) + "\n")
    (runs / "b" / "recipe.toml").write_text(f"[train]\nseed = 0x{'f' * 9000}\n")
    assert "Note: b: recipe.toml cannot be read" in compare("a", "b", "--out", "page.html")
    in_json(compare, "a", "b")
    assert call(["report", str(runs / "b")]) == 0
