"""Markup in everything that a report shows: it is text there, in every place, and the page still runs and loads nothing."""

from __future__ import annotations

import json

import pytest

from support.pages import Page, harmless
from velodrome.recorded_runs.report import write_report
from velodrome.report.html import MAX_TEXT

EVIL = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'><a href='javascript:alert(1)'>&lt;\u202e\x1b[2J"
SHOWN = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'><a href='javascript:alert(1)'>&lt;\\u202e\\x1b[2J"
ROW = {"kind": "epoch", "epoch": 1, "step": 4, "samples": 8, "seconds": 0.5, "lr": 0.1, "samples_per_s": 16.0}
# As parts of the path of a file: no slash.
FOLDER = "<script>alert(1)<!-- ' \" & javascript:\u202e"


def make_run(folder, evil=EVIL):
    """Make a run directory of which every text is from somebody who means harm."""
    run = folder / FOLDER
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text(json.dumps({evil: evil}))
    (run / "run.json").write_text(
        json.dumps(
            {
                "id": evil[:200],
                "status": "failed",
                "started": evil,
                "finished": evil,
                "stop_reason": evil,
                "error": evil,
                "host": evil,
                "device": evil,
                "seed": evil,
                "command": ["velodrome", "train", evil],
                "versions": {evil: evil},
                "git": {"commit": evil, "dirty": True},
                "budget": {evil: evil},
            }
        )
    )
    row = {**ROW, f"train/{evil}": 1.0, f"val/{evil}": 2.0, "val/loss": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "epoch": 2, "step": 8}) + "\n")
    bill = {"event": "bill", "wall_s": 2.0, "parts_s": {evil: 1.0, "callbacks": 1.0}, "callbacks_s": {evil: 1.0}, "findings": [evil], "epoch": evil}  # fmt: skip
    going_on = {
        "event": "went_on",
        "time": evil,
        "step": 4,
        "before": {"seed": evil},
        "now": {"seed": "x", evil: evil, "command": [evil]},
    }
    changed = {"event": "recipe_changed", "time": evil, "changes": {evil: [evil, None], "loss": "no list"}}
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (bill, going_on, changed)))
    (run / "log.txt").write_text(f"2026-11-22T05:33:39+00:00 warning: {evil}\nmore: {evil}\n")
    (run / "recipe.toml").write_text(f"[{json.dumps(evil)}]\n[model]\nname = {json.dumps(evil)}\n")
    return run


def test_markup_in_every_text_of_a_run_is_text_in_its_report(tmp_path):
    write_report(make_run(tmp_path), tmp_path / "page.html", draws=False)
    source = (tmp_path / "page.html").read_text("utf-8")
    page = harmless(source)
    assert page.text.count(SHOWN) >= 20
    assert page.text.count("<script>alert(1)<!-- ' \" & javascript:\\u202e") >= 2
    for forbidden in ("\u202e", "\x1b", "<script", "http://", "https://"):
        assert forbidden not in source


def test_pictures_of_such_names_are_images(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    write_report(make_run(tmp_path), tmp_path / "page.html")
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    assert "img" in {tag for tag, _ in page.elements}


def test_texts_of_any_length_make_a_page_that_can_be_read(tmp_path):
    write_report(make_run(tmp_path, "<" * 300_000), tmp_path / "page.html", draws=False)
    source = (tmp_path / "page.html").read_text("utf-8")
    harmless(source)
    assert len(source) < 400 * MAX_TEXT  # of several hundred texts that were given 300,000 letters each
    assert "(298,000 more characters)" in source


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "events.jsonl", "log.txt", "recipe.toml"])
def test_a_file_that_is_a_link_is_not_shown(tmp_path, name):
    """A run directory from somebody else must not make its report carry a file of ours."""
    run = make_run(tmp_path, "harmless")
    secret = (run / name).read_text().replace("harmless", "the secret")
    (tmp_path / "outside").write_text(secret)
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "outside")
    write_report(run, tmp_path / "page.html", draws=False)
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    assert f"Problem: {name} is a link, and is not read." in page.text
    assert "the secret" not in page.text
    assert "harmless" in page.text


def test_negative_control_a_page_that_does_not_escape_is_found():
    whole = "<!DOCTYPE html><html><head><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"><style>prefers-color-scheme:dark @media print</style></head><body>{}</body></html>"  # fmt: skip
    harmless(whole.format("<p>fine</p>"))
    for attack in (
        "<script>alert(1)</script>",
        "<p onclick='x'>x</p>",
        "<a href='javascript:x'>x</a>",
        "<img src='https://x' alt='x'>",
    ):
        with pytest.raises(AssertionError):
            harmless(whole.format(attack))
    assert Page("<p>a &lt;b&gt;</p>").text == "a <b>"
