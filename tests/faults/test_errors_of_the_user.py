"""FAULTS 14, 15: an error in somebody's own model, data, callback or logger, in the middle of an epoch."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.compare import compare_checkpoints
from velodrome.checkpoint.read import read_state, read_tensors

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


class Net(nn.Module):
    """Fails in its forward number `fails_at`, counted from 1; 0 never fails. Five of them are an epoch."""

    def __init__(self, fails_at=0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.dropout = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.head = nn.Linear(3, 1)
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x):
        hidden = self.dropout(self.norm(self.layer(x)))
        self.calls += 1
        if self.calls == self.fails_at:
            raise ZeroDivisionError("the user's own mistake")
        return self.head(hidden)


def make(folder, model, **changes):
    arguments = {
        "optimizer": "adam", "lr": 0.1, "loss": "mse", "seed": 3, "run_dir": folder, "loggers": [], "progress": False,
        "device": "cpu", "checkpoint": vd.Checkpointing(every="every 3 steps", keep_last=9), "log_every": "3 steps",
    }  # fmt: skip
    return vd.Trainer(model, **{**arguments, **changes})


def fit(trainer):
    return trainer.fit((X, Y), batch_size=4, epochs=2)


def failed_run(folder, fails_at=9, **changes):
    """Eight updates are done when the ninth batch fails: the checkpoints are of steps 3, 5 (an epoch, the best so far) and 6."""
    trainer = make(folder, Net(fails_at), **changes)
    with pytest.raises(ZeroDivisionError, match="the user's own mistake"):
        fit(trainer)
    return trainer


def steps_in(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def test_an_error_in_the_model_keeps_its_traceback_and_the_weights_aside_and_not_as_the_last(tmp_path, capsys):
    trainer = failed_run(tmp_path / "run")

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: the user's own mistake")
    assert 'raise ZeroDivisionError("the user' in (tmp_path / "run" / "log.txt").read_text()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert steps_in(checkpoints) == [3, 5, 6]
    assert steps_in(checkpoints / "failed") == [8]
    aside = checkpoints / "failed" / "step-00000008"
    state = read_state(aside)
    assert state["failed"] == "ZeroDivisionError: the user's own mistake"
    assert state["not_resumable"] == "ZeroDivisionError ended the run"
    assert state["progress"]["steps_done"] == 8
    saved = read_tensors(aside)
    assert all(saved[name].equal(value) for name, value in trainer.model.state_dict().items())
    model = vd.load_model(aside, model=Net())
    assert model.head.weight.equal(trainer.model.head.weight)
    last = vd.load_model(tmp_path / "run", model=Net(), weights="last")
    assert last.head.weight.equal(read_tensors(checkpoints / "step-00000006")["head.weight"])


def test_a_resume_after_an_error_goes_on_from_the_last_checkpoint_and_is_exact(tmp_path):
    failed_run(tmp_path / "run")
    resumed = make(tmp_path / "run", Net(), resume="auto")
    fit(resumed)
    fit(make(tmp_path / "straight", Net()))

    for step in (6, 9, 10):
        folders = [tmp_path / name / "checkpoints" / f"step-{step:08d}" for name in ("straight", "run")]
        assert compare_checkpoints(*folders) == []


def test_a_second_error_takes_the_place_of_what_the_first_left_aside(tmp_path):
    failed_run(tmp_path / "run", fails_at=9)
    # It goes on from step 6: its second batch is the eighth of the run, and its fifth the last but one... of the ten.
    for fails_at, done in ((2, 7), (3, 8)):
        with pytest.raises(ZeroDivisionError):
            fit(make(tmp_path / "run", Net(fails_at), resume="auto"))
        assert done in steps_in(tmp_path / "run" / "checkpoints" / "failed")
    assert len(steps_in(tmp_path / "run" / "checkpoints" / "failed")) <= 2


def test_nothing_is_saved_aside_where_nothing_would_be_lost_or_nothing_is_good(tmp_path):
    failed_run(tmp_path / "saved", fails_at=7)  # step 6 has its checkpoint
    failed_run(tmp_path / "first", fails_at=1)  # no step was done

    class Spoil(vd.Callback):
        def on_step_end(self, trainer):
            if trainer.progress.steps_done == 7:
                with torch.no_grad():
                    trainer.model.head.bias.fill_(float("nan"))
                raise ValueError("spoilt")

    class Interrupt(vd.Callback):
        def on_step_end(self, trainer):
            if trainer.progress.steps_done == 7:
                raise KeyboardInterrupt

    for name, callback, error in (("nan", Spoil(), ValueError), ("interrupt", Interrupt(), KeyboardInterrupt)):
        with pytest.raises(error):
            fit(make(tmp_path / name, Net(), callbacks=[callback]))
    for name in ("saved", "first", "nan", "interrupt"):
        assert not (tmp_path / name / "checkpoints" / "failed").exists(), name
    assert "could not be saved aside: NumericsError" in (tmp_path / "nan" / "log.txt").read_text()


def test_an_average_of_the_weights_is_saved_aside_too(tmp_path):
    trainer = failed_run(tmp_path / "run", ema=vd.EMA(0.5))
    aside = tmp_path / "run" / "checkpoints" / "failed" / "step-00000008"
    assert read_tensors(aside, "model")["head.bias"].equal(trainer.model.head.bias)
    assert not read_tensors(aside, "ema")["head.bias"].equal(trainer.model.head.bias)


class Noting(vd.Callback):
    """Notes the events of a run's end, and fails in those that it is told to."""

    def __init__(self, fails_in=()):
        self.events, self.fails_in = [], fails_in

    def _note(self, event):
        self.events.append(event)
        if event in self.fails_in:
            raise RuntimeError(f"in {event}")

    def on_step_end(self, trainer):
        if "on_step_end" in self.fails_in and trainer.progress.steps_done == 4:
            self._note("on_step_end")

    def on_exception(self, trainer, error):
        self._note("on_exception")

    def on_fit_end(self, trainer):
        self._note("on_fit_end")


def test_an_error_in_a_callback_ends_the_run_and_every_callback_is_told_once(tmp_path):
    callbacks = [Noting(["on_step_end"]), Noting()]
    with pytest.raises(RuntimeError, match="in on_step_end"):
        fit(make(tmp_path / "run", Net(), callbacks=callbacks))
    assert callbacks[0].events == ["on_step_end", "on_exception", "on_fit_end"]
    assert callbacks[1].events == ["on_exception", "on_fit_end"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert steps_in(tmp_path / "run" / "checkpoints" / "failed") == [4]


def test_callbacks_that_fail_at_the_end_leave_the_first_error_and_the_other_callbacks_alone(tmp_path):
    callbacks = [Noting(["on_exception", "on_fit_end"]), Noting()]
    with pytest.raises(ZeroDivisionError, match="the user's own mistake") as caught:
        fit(make(tmp_path / "run", Net(9), callbacks=callbacks))
    assert callbacks[0].events == callbacks[1].events == ["on_exception", "on_fit_end"]
    assert caught.value.__notes__ == [
        "Then a callback raised RuntimeError: in on_exception",
        "Then a callback raised RuntimeError: in on_fit_end",
    ]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_callback_that_fails_when_a_good_run_ends_is_an_error_and_the_others_are_told(tmp_path):
    callbacks = [Noting(["on_fit_end"]), Noting()]
    with pytest.raises(RuntimeError, match="in on_fit_end"):
        fit(make(tmp_path / "run", Net(), callbacks=callbacks))
    assert callbacks[1].events == ["on_fit_end"]


def test_a_logger_that_fails_is_switched_off_and_training_goes_on(tmp_path, capsys):
    class Broken:
        rows = 0

        def write(self, row):
            self.rows += 1
            raise ConnectionError("the server is down")

        def close(self):
            raise ConnectionError("the server is still down")

    broken = Broken()
    result = fit(make(tmp_path / "run", Net(), loggers=[broken]))

    assert [row["epoch"] for row in result.history] == [1, 2]
    assert broken.rows == 1
    said = capsys.readouterr().err
    assert said.count("Broken raised ConnectionError: the server is down. It is off for the rest of this run") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"
