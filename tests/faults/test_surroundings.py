"""FAULTS 52, 53, 54: homes and terminals that are not there, packages that are missing, odd values."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import velodrome as vd
from velodrome.errors import ArgumentError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


def run_cli(folder, environment, *arguments):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    own = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [
        sys.executable,
        "-m",
        "velodrome",
        "train",
        "fashion-mnist-mlp",
        "data.source=embedded",
        "train.steps=3",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform != "linux", reason="a home that cannot be written is made with Linux's own folders")
def test_it_trains_in_a_folder_of_any_name_without_a_home_a_terminal_or_an_encoding(tmp_path):
    folder = tmp_path / "größe und 空 'quoted'"
    folder.mkdir()
    done = run_cli(
        folder, {"HOME": "/proc/1/nowhere", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}, "--name", "größe 空"
    )

    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["status"] == "done"
    assert (
        record["command"][-1] == "größe 空"
    )  # as it was typed, although this Python was told that there is nothing but ASCII
    assert (run / "metrics.jsonl").read_text("utf-8").count("\n") == 1
    said = done.stderr + done.stdout
    assert b"Traceback" not in said
    assert b"\r" not in said  # lines, and no bar that is drawn again and again into a file
    assert len(said.splitlines()) < 40


def test_it_trains_with_no_home_at_all_and_writes_nothing_beside_its_run(tmp_path):
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    with_home = run_cli(
        folder,
        {"HOME": str(home), "LANG": "C.UTF-8"},
        "--name",
        "a",
        "logging.curves=false",
        "logging.tensorboard=false",
    )
    assert with_home.returncode == 0, with_home.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]


def test_a_missing_package_is_one_line_with_the_name_of_its_extra(monkeypatch):
    trainer = vd.Trainer(torch.nn.Linear(3, 1), "sgd", lr=0.1, loss="mse", progress=False, device="cpu")
    result = trainer.fit((X, Y), batch_size=4, epochs=1)
    for module, call, extra in (("pandas", result.to_pandas, "pandas"), ("matplotlib", result.plot, "plots")):
        for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ArgumentError) as error:
            call()
        assert f'pip install "velodrome[{extra}]"' in str(error.value)
        assert "\n" not in str(error.value)


def test_values_of_every_kind_are_logged_without_a_graph_a_wait_or_a_failure(tmp_path):
    """A live tensor, one with a gradient, NaN, a number of numpy's; what is no number is refused where it is logged."""
    numpy = pytest.importorskip("numpy")
    trainer = vd.Trainer(
        torch.nn.Linear(3, 1), "sgd", lr=0.1, run_dir=tmp_path / "run", loggers=["csv"], progress=False, device="cpu", log_every="1 steps"
    )  # fmt: skip
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, Y), batch_size=4):
            loss = (trainer.model(x) - y).square().mean()
            trainer.log(
                live=loss, weight=trainer.model.weight.norm(), gap=float("nan"), number=numpy.float32(2.0), flag=True
            )
            with pytest.raises(ArgumentError, match=r"name='a' cannot be averaged\. Log numbers or tensors"):
                trainer.log(name="a")
            trainer.step(loss)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["step", "step", "step", "epoch"]
    assert all(row["train/gap"] is None for row in rows)  # JSON has no NaN: a gap
    assert all(row["train/number"] == 2.0 and row["train/flag"] == 1.0 for row in rows)
    assert all(row["train/live"] > 0 for row in rows)


def test_a_clock_that_goes_back_changes_no_duration_and_no_choice(tmp_path, monkeypatch):
    """FAULTS 45: durations come from a clock that cannot be set; checkpoints are ordered by step, whatever their files' times say."""
    now = [2e9]

    def falling():
        now[0] -= 3600.0
        return now[0]

    def make():
        torch.manual_seed(0)
        return vd.Trainer(
            torch.nn.Linear(3, 1), "sgd", lr=0.1, loss="mse", seed=0, run_dir=tmp_path / "run", resume="auto", loggers=["csv"],
            progress=False, device="cpu", checkpoint="every 2 steps", log_every="2 steps",
        )  # fmt: skip

    monkeypatch.setattr("time.time", falling)
    make().fit((X, Y), batch_size=4, steps=6, epochs=None)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    for age, path in enumerate(checkpoints):
        for file in (path, *path.iterdir()):
            os.utime(file, (1e9 - age * 1e6, 1e9 - age * 1e6))  # the newest looks oldest
    resumed = make()
    result = resumed.fit((X, Y), batch_size=4, steps=9, epochs=None)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 < each < 100 for each in seconds)
    assert all(row["samples_per_s"] > 0 for row in rows)
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert (resumed.progress.steps_done, len(result.history)) == (9, 3)
