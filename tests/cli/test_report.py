"""`velodrome report`: one page about a run, whatever became of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir

import pytest

from support.pages import harmless
from velodrome.cli.main import run as call
from velodrome.errors import RefusedError
from velodrome.record.run_lock import RunLock
from velodrome.recorded_runs.report import write_report
from velodrome.recorded_runs.report_facts import read_facts
from velodrome.recorded_runs.state_comparison import compare_runs

RECIPE = """\
[model]
name = "mlp"
sizes = [3, 4, 1]
output = "sigmoid"

[data]
name = "csv"
path = "table.csv"
target = "y"
train_rows = 40

[loss]
name = "bce"

[optimizer]
name = "adam"

[train]
epochs = 2
batch_size = 4

[logging]
every = "5 steps"
tensorboard = false
curves = false
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two epochs of ten steps, without curves, gone on with for a third; its report is the one written at its end."""
    folder = tmp_path_factory.mktemp("made")
    rows = [f"{i % 7},{i % 5},{i % 3},{i % 2}" for i in range(50)]
    (folder / "table.csv").write_text("\n".join(["a,b,c,y", *rows]) + "\n")
    (folder / "mine.toml").write_text(RECIPE)
    with chdir(folder):
        assert call(["train", "mine.toml", "--name", "mine", "-q"]) == 0
        assert call(["resume", "runs/mine", "train.epochs=3", "-q"]) == 0
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of that folder; the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def report(project):
    """Write the report of `runs/mine` and return it, taken apart; without pictures, which take a while."""

    def write(*, draws=False):
        write_report("runs/mine", "page.html", draws=draws)
        return harmless((project / "page.html").read_text("utf-8"))

    return write


def test_a_run_ends_with_a_report_and_names_it(made):
    page = harmless((made / "runs" / "mine" / "report.html").read_text("utf-8"))
    assert "Done. All epochs are done." in page.text
    assert "3 epochs, 30 steps, 120 samples" in page.text
    assert "Curves were not drawn when this page was written" in page.text
    assert "matplotlib" not in page.text


def test_a_run_without_curves_does_not_import_matplotlib(made):
    """A report is no reason to: importing it takes longer than a small run."""
    code = (
        "import sys\nfrom velodrome.cli.main import run\n"
        "assert run(['train', 'mine.toml', '--name', 'other', 'train.epochs=1', '-q']) == 0\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=made)
    assert (made / "runs" / "other" / "report.html").exists()


def test_parts_stand_in_the_order_in_which_people_ask(report):
    page = report()
    titles = [attributes["id"] for tag, attributes in page.elements if tag == "h2"]
    assert titles == [
        "metrics", "findings", "time", "curves", "epochs", "changes", "events", "checkpoints", "surroundings", "recipe", "commands",
    ]  # fmt: skip
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a" and attributes["href"] != "#events"]
    assert links[: len(titles)][0] == "#metrics"


def test_numbers_are_those_of_the_journal(report, project):
    page = report()
    rows = [json.loads(line) for line in (project / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row[0] for row in page.table("Epoch")] == ["1", "2", "3"]
    assert [row[1] for row in page.table("Epoch")] == ["10", "20", "30"]
    assert page.table("Epoch")[2][4] == f"{epochs[2]['train/loss']:.4f}"
    best = min(epochs, key=lambda row: row["val/loss"])
    loss = page.row("loss")
    assert loss == [
        f"{epochs[2]['train/loss']:.4f}", f"{epochs[2]['val/loss']:.4f}", f"{best['val/loss']:.4f}", str(best["epoch"]),
    ]  # fmt: skip
    assert f"The best epoch is {best['epoch']} of 3: val/loss {best['val/loss']:.4f}." in page.text


def test_the_bill_sums_to_the_wall_time(report, project):
    page = report()
    events = [json.loads(line) for line in (project / "runs" / "mine" / "events.jsonl").read_text().splitlines()]
    bill = [event for event in events if event["event"] == "bill"][-1]
    shown = [row for row in page.table("Part") if not row[0].startswith("–")]
    assert sum(float(row[1]) for row in shown) == pytest.approx(bill["wall_s"], abs=0.0005 * len(shown))
    assert sum(float(row[2].rstrip("%")) for row in shown) == pytest.approx(100, abs=0.05 * len(shown))
    assert "of the last part of the run, since it went on" in page.text


def test_what_was_changed_when_it_went_on_is_said(report):
    page = report()
    assert "Went on after step 20" in page.text
    assert page.row("recipe: train.epochs") == ["2", "3"]
    assert page.row("budget.epochs") == ["2", "3"]
    assert "versions" not in " ".join(row[0] for row in page.table("What"))


def test_commands_recipe_versions_and_checkpoints_are_there(report, project):
    page = report()
    assert page.row("Go on") == ["velodrome resume runs/mine train.epochs=MORE"]
    assert page.row("Evaluate") == ["velodrome eval runs/mine"]
    assert page.row("Run the same again") == ["velodrome train runs/mine/recipe.toml"]
    assert page.row("torch") == [json.loads((project / "runs/mine/run.json").read_text())["versions"]["torch"]]
    assert "sizes = [3, 4, 1]" in page.text
    folders = sorted((path.name for path in (project / "runs/mine/checkpoints").glob("step-*")), reverse=True)
    assert [row[0] for row in page.table("Folder")] == folders
    assert page.table("Folder")[0][3].startswith("newest")
    (best,) = [row[1] for row in page.table("Folder") if "best" in row[3]]
    assert int(best) == json.loads((project / "runs/mine/checkpoints/best.json").read_text())["step"]


def test_curves_are_images_in_the_page(report):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    sources = [attributes["src"] for tag, attributes in report(draws=True).elements if tag == "img"]
    assert [source[:31] for source in sources] == [
        "data:image/svg+xml;base64,PD94b"
    ] * 2  # curves; loss and rate over steps


def test_the_same_files_give_the_same_page(report, project):
    report(draws=True)
    first = (project / "page.html").read_bytes()
    report(draws=True)
    assert (project / "page.html").read_bytes() == first


def test_without_matplotlib_the_table_stays_and_a_line_names_the_extra(report, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report(draws=True)
    assert 'To have them: pip install "velodrome[plots]"' in page.text
    assert len(page.table("Epoch")) == 3
    assert "img" not in {tag for tag, _ in page.elements}


def edit_record(project, **changes):
    file = project / "runs" / "mine" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_failed_run_says_the_error(report, project):
    edit_record(project, status="failed", stop_reason="An error ended the run.", error="ValueError: no luck")
    page = report()
    assert "Failed. An error ended the run." in page.text
    assert "Error: ValueError: no luck" in page.text
    assert page.row("Go on") == ["velodrome resume runs/mine"]


def test_a_killed_run_and_one_under_way_say_so(report, project):
    edit_record(project, status="running", finished=None)
    assert "Killed: it never said how it ended." in report().text
    lock = RunLock(project / "runs" / "mine")
    lock.acquire()
    try:
        page = report()
        assert "Under way when this was written." in page.text
        assert f"process {os.getpid()}" in page.text
        assert not [row for rows in page.tables for row in rows if row[0] == "Go on"]
    finally:
        lock.release()


def test_a_run_without_an_epoch_has_a_report(report, project):
    run = project / "runs" / "mine"
    (run / "metrics.jsonl").write_text("")
    (run / "events.jsonl").unlink()
    shutil.rmtree(run / "checkpoints")
    page = report()
    assert "No epoch is over, so there are no metrics of one." in page.text
    assert "No bill was recorded" in page.text
    assert "There is no checkpoint." in page.text


@pytest.mark.parametrize("damage", ["gone", "garbage", "folder"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "events.jsonl", "log.txt", "recipe.toml", "checkpoints/best.json"])  # fmt: skip
def test_a_file_that_is_missing_or_damaged_is_told_and_the_rest_is_there(report, project, name, damage):
    file = project / "runs" / "mine" / name
    file.unlink()
    if damage == "garbage":
        file.write_bytes(b"\xff\x00{[\n= = \xfe\n")
    elif damage == "folder":
        file.mkdir()
    page = report()
    has_problem = any(attributes.get("class") == "bad" for tag, attributes in page.elements if tag == "li")
    is_text = name == "log.txt" and damage == "garbage"  # lines of anything, none with a time
    assert has_problem == ((damage != "gone" or name in ("run.json", "metrics.jsonl")) and not is_text)
    assert (name == "metrics.jsonl") or len(page.table("Epoch")) == 3


def test_a_torn_last_line_is_no_damage(report, project):
    with open(project / "runs" / "mine" / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "epoch", "epo')
    page = report()
    assert len(page.table("Epoch")) == 3
    assert "damaged" not in page.text


def test_it_is_written_into_the_run_and_json_says_where(project, capfd):
    (project / "runs" / "mine" / "report.html").unlink()
    assert call(["report", "runs/mine", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer == {"report": "runs/mine/report.html", "run": "runs/mine", "status": "done", "problems": []}
    harmless((project / "runs" / "mine" / "report.html").read_text("utf-8"))


def test_a_folder_without_a_run_is_refused(project, capfd):
    assert call(["report", "."]) == 3
    assert "holds no run (no run.json). List the runs: velodrome runs" in capfd.readouterr().err
    assert call(["report", "nowhere"]) == 3


def test_a_place_that_cannot_be_written_is_a_wrong_argument(project, capfd):
    assert call(["report", "runs/mine", "--out", "nowhere/page.html"]) == 2
    assert "cannot be written to nowhere/page.html: No such file or directory" in capfd.readouterr().err


def test_a_report_that_cannot_be_written_is_one_line_and_the_run_is_done(project, capfd):
    (project / "runs" / "mine" / "report.html").unlink()
    (project / "runs" / "mine" / "report.html").mkdir()
    capfd.readouterr()
    assert call(["resume", "runs/mine", "train.epochs=4"]) == 0
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "report.html was not written" in line]
    assert len(lines) == 1
    assert "To write it: velodrome report mine" in lines[0]
    assert json.loads((project / "runs" / "mine" / "run.json").read_text())["status"] == "done"


def test_the_switch_of_the_recipe_leaves_it_out(project):
    assert call(["train", "mine.toml", "--name", "without", "train.epochs=1", "logging.report=false", "-q"]) == 0
    assert not (project / "runs" / "without" / "report.html").exists()


def test_a_report_makes_no_difference_between_runs_that_are_equal_to_the_last_bit(project):
    for name, switch in (("with", "true"), ("without", "false")):
        assert call(["train", "mine.toml", "--name", name, f"logging.report={switch}", "-q"]) == 0
    found = compare_runs(project / "runs" / "with", project / "runs" / "without")
    assert (found.differences, found.steps_compared, found.num_rows) == ((), (10, 20), 6)


def test_a_file_that_exists_is_written_over_when_told_so_only(project, capfd):
    (project / "notes.html").write_text("mine")
    assert call(["report", "runs/mine", "--out", "notes.html"]) == 3
    assert "notes.html exists already. Give another --out, or --force to write over it." in capfd.readouterr().err
    assert (project / "notes.html").read_text() == "mine"
    assert call(["report", "runs/mine", "--out", "notes.html", "--force"]) == 0
    harmless((project / "notes.html").read_text("utf-8"))
    assert call(["report", "runs/mine", "--out", str(project / "runs" / "mine" / "report.html")]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "metrics.csv", "checkpoints/best.json", "tb/new.html"])
def test_a_file_of_a_run_is_never_written_over(project, capfd, name):
    file = project / "runs" / "mine" / name
    before = file.read_bytes() if file.exists() else None
    for verb in (["report", "runs/mine"], ["compare", "runs/mine", "runs/mine"]):
        assert call([*verb, "--out", f"runs/mine/{name}", "--force"]) == 3
        assert "is a file of the run in" in capfd.readouterr().err
    with pytest.raises(RefusedError, match="no page is written over one"):
        write_report("runs/mine", file)
    assert (file.read_bytes() if file.exists() else None) == before


def test_the_report_of_another_run_is_not_written_over(project, capfd):
    shutil.copytree(project / "runs" / "mine", project / "runs" / "third")
    assert call(["report", "runs/mine", "--out", "runs/third/report.html", "--force"]) == 3
    assert call(["compare", "runs/mine", "runs/third", "--out", "runs/third/report.html", "--force"]) == 3


@pytest.mark.parametrize("secret", ["checkpoints", "checkpoints/best.json", "metrics.jsonl", "step"])
def test_nothing_is_read_through_a_link(report, project, secret, tmp_path):
    run = project / "runs" / "mine"
    path = max((run / "checkpoints").glob("step-*")) if secret == "step" else run / secret
    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    if secret == "metrics.jsonl":  # the end of the journal would tell how far the run came
        edit_record(project, progress=None, best=None)
    page = report()
    assert f"Problem: {path.relative_to(run)} is a link, and is not read." in page.text
    facts = read_facts(run)
    if secret == "checkpoints":
        assert (facts.checkpoints, facts.monitor, facts.settings) == ([], "val/loss", {})
    elif secret == "step":
        assert path.name not in {each.name for each in facts.checkpoints}
        assert facts.checkpoints
    elif secret == "metrics.jsonl":
        assert (facts.epochs_done, facts.steps_done) == (None, None)
    else:
        assert not any(each.is_best for each in facts.checkpoints)


def test_the_monitor_is_not_read_from_a_folder_of_checkpoints_that_is_a_link(project, tmp_path):
    run = project / "runs" / "mine"
    best = {"step": 10, "monitor": "val/secret", "value": 1.0}
    (run / "checkpoints" / "best.json").write_text(json.dumps(best))
    assert read_facts(run).monitor == "val/secret"  # the control
    shutil.move(run / "checkpoints", tmp_path / "outside")
    (run / "checkpoints").symlink_to(tmp_path / "outside")
    assert read_facts(run).monitor == "val/loss"


def test_a_bill_of_the_part_before_says_so(report, project):
    file = project / "runs" / "mine" / "events.jsonl"
    lines = file.read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if '"went_on"' in line)
    assert "of the last part of the run, since it went on." in report().text
    file.write_text("\n".join(lines[: last + 1]) + "\n")  # killed before the next bill
    assert "of the part before the run went on last: no epoch has ended since." in report().text


def test_made_with_is_that_of_the_newest_part(report, project):
    file = project / "runs" / "mine" / "events.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        if event["event"] == "went_on":
            event["now"].update(command=["velodrome", "resume", "now"], versions={"torch": "9.9"}, host="newer")
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    page = report()
    assert page.row("torch") == ["9.9"]
    assert page.row("Host") == ["newer"]
    assert page.row("Command") == ["velodrome resume now"]
    assert "As it was when the run went on last" in page.text


def test_a_line_of_the_log_is_no_going_on(report, project):
    """Also one that is damaged: what `events.jsonl` says counts."""
    run = project / "runs" / "mine"
    (run / "events.jsonl").unlink()
    (run / "log.txt").write_text("2026-11-22T05:33:39+00:00 Going on from the checkpoint of step ,, x\n")
    assert "Where it went on" not in report().text
