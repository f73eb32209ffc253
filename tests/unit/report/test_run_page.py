"""The page about a run, from facts that are made up: what is shown, what is left out and said to be."""

from __future__ import annotations

import pytest

from support.pages import harmless
from velodrome.report.facts import Event, RunFacts, SavedState, WentOn
from velodrome.report.run_page import run_page


def epoch_row(epoch, loss, **more):
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": 4 * epoch,
        "seconds": 1.5 * epoch,
        "lr": 0.1,
        "val/loss": loss,
        **more,
    }


def show(**facts):
    return harmless(run_page(RunFacts(**{"name": "mine", "status": "done", **facts}), draws=False))


def test_of_many_epochs_the_first_the_last_and_the_best_are_shown():
    rows = [epoch_row(epoch, abs(epoch - 100) + 1.0) for epoch in range(1, 201)]
    page = show(epochs=rows, best=rows[99], monitor="val/loss")
    shown = [row[0] for row in page.table("Epoch")]
    assert shown == [*map(str, range(1, 16)), "84 left out", "100", "85 left out", *map(str, range(186, 201))]
    assert "169 of 200 epochs are left out; metrics.csv has all." in page.text
    assert "The best epoch is 100 of 200: val/loss 1.0000." in page.text
    assert [dict(attributes).get("class") for tag, attributes in page.elements if tag == "tr"].count("best") == 1


def test_forty_epochs_are_all_shown():
    page = show(epochs=[epoch_row(epoch, 1.0) for epoch in range(1, 41)])
    assert len(page.table("Epoch")) == 40
    assert "left out" not in page.text


def test_evaluations_within_epochs_have_a_table_of_their_own():
    rows = [
        {"kind": "evaluation", "epoch": 1, "step": 10 * k, "lr": 0.1, "val/loss": 1 / k, "test/f1": 0.5}
        for k in range(1, 61)
    ]
    page = show(evaluations=rows)
    assert page.table("Step")[0] == ["10", "1", "1.0000", "0.5000"]
    assert [row[0] for row in page.table("Step")] == [
        *map(str, range(10, 160, 10)),
        "30 left out",
        *map(str, range(460, 610, 10)),
    ]
    assert "Evaluations within epochs" not in show().text


def test_of_many_metrics_some_are_columns_and_all_have_a_line():
    row = epoch_row(1, 1.0, **{f"val/m{index}": 1.0 * index for index in range(30)})
    page = show(epochs=[row])
    assert len(page.table("Metric")) == 31
    assert len(page.table("Epoch")[0]) == 1 + 3 + 8 + 1
    assert "23 more columns are in metrics.csv." in page.text


def test_what_was_not_finite_is_said_and_is_no_best():
    page = show(epochs=[epoch_row(1, 0.5), epoch_row(2, None)])
    assert page.table("Epoch")[1][4] == "not a number"
    assert page.row("loss") == ["", "not a number", "0.5000", "1"]


def test_a_value_whose_name_says_nothing_has_the_best_that_the_run_was_told():
    rows = [epoch_row(1, 1.0, **{"val/quantity": 3.0}), epoch_row(2, 1.0, **{"val/quantity": 2.0})]
    assert show(epochs=rows).row("quantity") == ["", "2.0000", "", ""]
    assert show(epochs=rows, directions={"val/quantity": "max"}).row("quantity") == ["", "2.0000", "3.0000", "1"]


def test_the_process_that_the_others_wait_for_is_named():
    bill = {"wall_s": 4.0, "parts_s": {"forward": 3.0, "other": 1.0}, "batches": 8}
    page = show(bill=bill, step_ms=[10.0, 31.0, 10.0])
    assert page.row("rank 1")[0] == "31"
    assert "Rank 1 takes 3.1 times as long as the median: all wait for it." in page.text
    assert page.row("forward and loss")[:2] == ["3.000", "75.0%"]
    assert "all wait for it" not in show(bill=bill, step_ms=[10.0, 14.0, 10.0]).text


def test_a_bill_of_a_part_of_the_run_says_so():
    bill = {"wall_s": 4.0, "parts_s": {"forward": 4.0}}
    on = [WentOn(time="t", step=4)]
    assert "4 s of wall time; of the last part of the run, since it went on." in show(bill=bill, goings_on=on).text
    page = show(bill={**bill, "findings": ["slow"]}, goings_on=on, bill_is_of_part_before=True)
    assert "4 s of wall time; of the part before the run went on last: no epoch has ended since." in page.text
    assert "What is said of the time is of the part before" in page.text
    assert "4 s of wall time." in show(bill=bill).text
    assert "4 s of wall time, up to the end of epoch 3." in show(bill={**bill, "epoch": 3}).text


def test_bars_of_the_bill_are_as_wide_as_their_share():
    page = show(bill={"wall_s": 4.0, "parts_s": {"forward": 3.0, "other": 1.0}})
    assert [attributes["style"] for tag, attributes in page.elements if attributes.get("style")] == [
        "width:75.0%",
        "width:25.0%",
    ]


@pytest.mark.parametrize(("num", "said"), [(1, "1 warning was given"), (3, "3 warnings were given")])
def test_warnings_are_counted_among_the_findings(num, said):
    events = [Event(time="2026-11-22T05:33:39+00:00", text="warning: x"), Event(time="", text="a note")]
    page = show(events=[events[0]] * num + [events[1]])
    assert said in page.text
    assert [row[1] for row in page.table("Time")] == ["warning"] * num + ["note"]
    assert page.table("Time")[0][0] == "2026-11-22 05:33:39 UTC"


def test_of_a_traceback_the_last_line_is_the_heading():
    page = show(events=[Event(time="", text="Traceback (most recent call last):\n  File\nValueError: no luck")])
    (row,) = page.table("Time")
    assert row[1] == "error"
    assert row[2].startswith("ValueError: no luck")
    assert "Traceback (most recent call last)" in row[2]


def test_a_checkpoint_that_cannot_be_used_says_why_and_is_not_the_newest():
    saved = [
        SavedState(name="step-2", step=2, problem="torn"),
        SavedState(name="step-1", step=1, num_bytes=1500, is_best=True),
    ]
    assert show(checkpoints=saved).table("Folder") == [
        ["step-2", "2", "0 bytes", "torn"],
        ["step-1", "1", "1.5 kB", "newest, best"],
    ]


def test_a_picture_that_is_there_is_taken_as_it_is():
    page = harmless(
        run_page(RunFacts(name="x", status="done", epochs=[epoch_row(1, 1.0)]), curves_png=b"\x89PNG", draws=False)
    )
    assert [attributes["src"] for tag, attributes in page.elements if tag == "img"] == [
        "data:image/png;base64,iVBORw=="
    ]


def test_a_run_that_was_begun_in_python_shows_the_settings_that_its_checkpoint_tells():
    page = show(record={"id": "x"}, settings={"seed": 3, "optimizers": {"optimizer": {"type": "SGD"}}})
    assert page.row("optimizers.optimizer.type") == ["SGD"]
    assert "it has no recipe" in page.text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("done", "Done. All epochs are done."),
        ("killed", "Killed: it never said how it ended."),
        ("under way", "Under way when this was written."),
    ],
)
def test_what_an_earlier_part_of_the_run_said_is_not_how_a_later_one_ended(status, said):
    assert said in show(status=status, record={"stop_reason": "All epochs are done."}).text


def test_the_mode_of_the_run_wins_over_the_name():
    rows = [epoch_row(1, 1.0), epoch_row(2, 3.0), epoch_row(3, 2.0)]
    assert show(epochs=rows, directions={"val/loss": "max"}).row("loss") == ["", "2.0000", "3.0000", "2"]


def test_evaluations_of_any_name_are_in_both_tables():
    page = show(epochs=[epoch_row(1, 1.0, **{"test/loss": 4.0, "test/f1": 0.5, "lr/head": 0.1})])
    assert page.row("loss") == ["", "1.0000", "1.0000", "1", "4.0000"]
    assert page.row("f1") == ["", "", "", "", "0.5000"]
    assert page.table("Epoch")[0][4:] == ["1.0000", "4.0000", "0.5000", ""]


def test_numbers_that_no_float_holds_are_no_reason_to_fail():
    bill = {"wall_s": 4.0, "parts_s": {"data_wait": 3.0, "forward": 1.0}, "batches": 10**400, "workers": 10**400}
    page = show(epochs=[{**epoch_row(1, 1.0), "epoch": 10**400, "samples_per_s": 10**400, "lr": 10**400}], bill=bill)
    assert page.table("Epoch")[0][-1] == ""
    assert "4 s of wall time" in page.text
