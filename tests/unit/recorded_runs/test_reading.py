"""What a report reads: rows, events, the log; how a run went on; findings of a run that did not end."""

from __future__ import annotations

import json

import pytest

from velodrome.distributed.pace import Pace
from velodrome.errors import RefusedError
from velodrome.record.bill import Bill
from velodrome.recorded_runs.reading import read_events, read_journal, read_log
from velodrome.recorded_runs.report_facts import read_facts
from velodrome.recorded_runs.resumptions import find_goings_on, read_pace
from velodrome.report.facts import Event, RunFacts
from velodrome.report.findings import find_bottlenecks
from velodrome.report.recorded_bill import RecordedBill


def write_rows(file, num_steps):
    rows = [{"kind": "step", "step": step, "train/loss": 1.0} for step in range(1, num_steps + 1)]
    rows.append({"kind": "epoch", "epoch": 1, "step": num_steps})
    rows.append({"kind": "evaluation", "epoch": 2, "step": num_steps, "val/loss": 0.5})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("num_steps", "num_read", "first_two"), [(3, 3, [1, 2]), (2000, 2000, [1, 2]), (4002, 1335, [1, 4])]
)
def test_of_very_many_rows_evenly_chosen_ones_are_read_and_the_last(tmp_path, num_steps, num_read, first_two):
    problems = []
    found = read_journal(write_rows(tmp_path / "metrics.jsonl", num_steps), problems)
    steps = found.steps
    assert [row["val/loss"] for row in found.evaluations] == [0.5]
    assert (len(found.epochs), found.num_steps, problems) == (1, num_steps, [])
    assert len(steps) == num_read  # of 4,002 every third one is 1,334, and the last one
    assert [row["step"] for row in steps[:2]] == first_two
    assert steps[-1]["step"] == num_steps


def test_damaged_lines_are_counted_and_the_others_read(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "bill"}\n[]\n\xff\n{"event": "x"}\n{"torn')
    problems = []
    assert read_events(tmp_path / "events.jsonl", problems) == [{"event": "bill"}, {"event": "x"}]
    assert problems == ["events.jsonl: 2 lines are damaged and were left out."]


def test_rows_that_do_not_say_where_they_belong_are_damaged(tmp_path):
    lines = [
        '{"kind": "epoch"}',
        '{"kind": "epoch", "epoch": "<b>", "step": {}}',
        '{"kind": "epoch", "epoch": 1, "step": 4}',
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    problems = []
    assert [row["epoch"] for row in read_journal(tmp_path / "metrics.jsonl", problems).epochs] == [1]
    assert problems == ["metrics.jsonl: 2 lines are damaged and were left out."]


def test_lines_without_a_time_belong_to_the_one_above(tmp_path):
    (tmp_path / "log.txt").write_text(
        "cut off line\n2026-11-22T05:33:39+00:00 warning: a\n2026-11-22T05:33:40+00:00 Traceback (most recent call last):\n  File\nValueError: x\n"
    )
    events, left_out = read_log(tmp_path / "log.txt", [])
    assert [(event.kind, event.text.count("\n")) for event in events] == [("warning", 0), ("error", 2)]
    assert left_out == 0


def test_of_a_long_log_the_newest_lines_are_read(tmp_path):
    (tmp_path / "log.txt").write_text("".join(f"2026-11-22T05:33:39+00:00 line {i}\n" for i in range(250)))
    events, left_out = read_log(tmp_path / "log.txt", [])
    assert (len(events), left_out, events[-1].text) == (200, 50, "line 249")


def test_a_folder_in_the_place_of_a_file_is_a_problem(tmp_path):
    (tmp_path / "log.txt").mkdir()
    problems = []
    assert read_log(tmp_path / "log.txt", problems) == ([], 0)
    assert problems == ["log.txt cannot be read: it is not a plain file."]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="holds no run"):
        read_facts(tmp_path)


def test_what_was_changed_each_time_is_compared_with_the_time_before():
    record = {"command": ["train"], "versions": {"torch": "1"}, "git": None, "host": "a"}
    now = {
        "command": ["resume"],
        "versions": {"torch": "1"},
        "git": None,
        "host": "a",
        "pid": 1,
        "processes": 1,
        "budget": {"epochs": 4},
    }
    events = [
        {"event": "went_on", "time": "t1", "step": 10, "before": {"processes": 1, "budget": {"epochs": 2}}, "now": now},
        {"event": "recipe_changed", "changes": {"train.epochs": [2, 4]}},
        {"event": "bill"},
        {"event": "went_on", "time": "t2", "step": 20, "before": {"processes": 1, "budget": {"epochs": 4}}, "now": {**now, "pid": 2, "processes": 2, "versions": {"torch": "2"}}},
    ]  # fmt: skip
    first, second = find_goings_on(events, record)
    assert [(each.name, each.values) for each in first.changes] == [
        ("recipe: train.epochs", (2, 4)), ("command", ("train", "resume")), ("budget.epochs", (2, 4)),
    ]  # fmt: skip
    assert [(each.name, each.values) for each in second.changes] == [
        ("versions.torch", ("1", "2")),
        ("processes", (1, 2)),
    ]
    assert (second.step, second.time) == (20, "t2")


def test_the_pace_of_each_process_is_read_as_it_is_said():
    pace = Pace(3)
    pace.note([0.0, 0.0, 0.0], 0)
    pace.note([1.0, 2.0, 4.0], 1000)
    log = [Event(time="t", text=pace.describe()), Event(time="t", text="something else")]
    assert read_pace(log) == [1.0, 2.0, 4.0]
    assert read_pace([Event(time="t", text="By itself a step took e.e ms in rank 0.")]) == []


def test_a_bill_read_back_means_what_the_bill_means():
    bill = Bill(
        wall_s=10.0,
        parts={"data_wait": 5.0, "saving": 2.0, "optimizer": 3.0},
        callbacks={"Slow": 1.0},
        batches=100,
        num_long=2,
        long_s=2.0,
        dataset="Scans",
        facts={"workers": 1, "cores": 4, "fused_optimizer": True, "processes": 2, "saves_in_background": True},
    )
    again = RecordedBill.of(json.loads(json.dumps(bill.to_dict())))
    assert find_bottlenecks(again) == find_bottlenecks(bill)
    assert len(find_bottlenecks(bill)) == 5
    assert RunFacts(name="x", status="killed", bill=bill.to_dict()).findings == find_bottlenecks(bill)
    assert RunFacts(name="x", status="done", bill={**bill.to_dict(), "findings": ["said"]}).findings == ["said"]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"wall_s": "x", "batches": True},
        {"wall_s": 1.0, "parts_s": [], "batches": 1, "workers": "many", "processes": []},
    ],
)
def test_a_bill_of_anything_means_nothing(event):
    assert find_bottlenecks(RecordedBill.of(event)) == []
