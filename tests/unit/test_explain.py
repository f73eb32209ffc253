"""`trainer.explain()`: the calls that it prints are compared with those that a run makes."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome
from velodrome import EMA, SWA, Callback, EarlyStopping
from velodrome.callbacks.base import EVENTS, listeners
from velodrome.explain import path_of
from velodrome.step.clipping import Clipping
from velodrome.step.precision import FullPrecision
from velodrome.step.updates import Updates
from velodrome.testing.recording import RecordingCallback
from velodrome.testing.tiny import tiny_classification, tiny_mlp

EPOCH = "velodrome.loop.epochs.Epoch"
DOCS = Path(__file__).resolve().parents[2] / "docs"


class OfSteps(Callback):
    def on_step_end(self, trainer):
        pass


class OfEverything(Callback):
    def on_fit_start(self, trainer):
        pass

    def on_epoch_start(self, trainer):
        pass

    def on_step_end(self, trainer):
        pass

    def on_evaluate_end(self, trainer, metrics):
        pass

    def on_checkpoint(self, trainer, path):
        pass

    def on_epoch_end(self, trainer, row):
        pass

    def on_fit_end(self, trainer):
        pass


def own_loss(output, target):
    return F.cross_entropy(output, target)


def own_step(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def share_of_first(output, target):
    return (output.argmax(1) == 0).float()


# Each run is one epoch of one update and one evaluation batch, so that what is printed once happens once.
CONFIGURATIONS = {
    "nothing": {},
    "fp32 with metrics and callbacks": {"metrics": ["accuracy"], "callbacks": [OfEverything(), OfSteps()], "seed": 0},
    "accumulation and clipping": {"accumulate": 3, "clip_norm": 1.0, "clip_value": 0.5, "grad_norms": True},
    "schedule and ema": {"scheduler": "cosine", "ema": 0.9, "precision": "bf16", "metrics": [share_of_first]},
    "torch's schedule, swa": {"scheduler": "steplr", "scheduler_args": {"step_size": 1}, "ema": SWA(start=0)},
    "fp16": {"precision": "fp16", "clip_norm": 1.0, "optimizer": "sgd", "lr": 0.1},
    "fp16 with ema": {"precision": "fp16", "ema": EMA(0.5, evaluate="raw")},
    "own step": {"step_fn": own_step, "loss": None, "optimizer": "adamw"},
    "own loss, early stopping": {"loss": own_loss, "callbacks": [EarlyStopping()]},
    "weighted loss": {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), "accumulate": 2},
}


def make_trainer(configuration, run_dir=None, **more):
    arguments = {
        "optimizer": "adam",
        "loss": "cross_entropy",
        "progress": False,
        "loggers": (),
        **configuration,
        **more,
    }
    return velodrome.Trainer(tiny_mlp(), run_dir=run_dir, device="cpu", **arguments)


def owners_of(text):
    return [re.split(r"\s{2,}", line.strip())[1] for line in text.splitlines()]


def record(function):
    """Return the paths of all Python functions that a function calls, in order."""
    called = []

    def note(frame, event, argument):
        if event == "call":
            called.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return called


def missing_from(expected, called):
    """Return what of the expected calls did not come after the one before it."""
    position, missing = 0, []
    for name in expected:
        try:
            position = called.index(name, position) + 1
        except ValueError:
            missing.append(name)
    return missing


def run_of_one_update(configuration, run_dir):
    trainer = make_trainer(configuration, run_dir, log_every="1 step", checkpoint="1 step")
    x, y = tiny_classification(num_samples=24)
    size = 24 // configuration.get("accumulate", 1)
    val = velodrome.DataLoader((x, y), 24)
    text = trainer.explain()
    called = record(lambda: trainer.fit(velodrome.DataLoader((x, y), size), val, epochs=1))
    return text, called


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_printed_is_what_a_run_calls_in_that_order(tmp_path, name):
    text, called = run_of_one_update(CONFIGURATIONS[name], tmp_path / "run")
    # Not in a run of one update with one label a sample, all finite: said in words, on the line.
    lines = [
        line for line in text.splitlines() if "where a sample has several" not in line and "not finite:" not in line
    ]
    if "fp16" in name and "ema" not in name:  # settled as late as possible
        lines = [line for line in lines if "tell the schedule of the update" not in line]
    expected = in_order_of_calls("\n".join(lines))

    assert missing_from(expected, called) == []


def in_order_of_calls(text):
    """Return the owners that one update and one evaluation call, in the order of the text.

    Not the class `Epoch`, and not `Epoch.evaluate`: it is a generator, entered again for each batch. One update is saved once, so
    the later lines of a save have no checkpoint to tell of.
    """
    owners = [owner for owner in owners_of(text) if owner not in (EPOCH, f"{EPOCH}.evaluate")]
    is_told = [owner.endswith(".on_checkpoint") for owner in owners]
    return [owner for index, owner in enumerate(owners) if not is_told[index] or not any(is_told[:index])]


def test_the_comparison_sees_a_wrong_order(tmp_path):
    """The negative control: two lines the other way round."""
    text, called = run_of_one_update(CONFIGURATIONS["accumulation and clipping"], tmp_path / "run")
    expected = in_order_of_calls(text)
    divide, step = expected.index("velodrome.step.updates._divide"), expected.index("torch.optim.adam.Adam.step")
    expected[divide], expected[step] = expected[step], expected[divide]

    assert missing_from(expected, called)


def whats_of(text):
    return [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines()]


def test_only_what_is_switched_on_appears(tmp_path):
    off = make_trainer({}).explain()
    on = make_trainer(
        {"precision": "fp16", "accumulate": 4, "clip_norm": 1.0, "scheduler": "cosine", "ema": 0.9, "seed": 3},
        tmp_path / "run",
        checkpoint="500 steps",
    ).explain()

    words = (
        "unscale (fp16)",
        "divide by the items of the window",
        "clip to norm 1",
        "update the EMA",
        "schedule",
        "seed",
    )
    assert [word for word in words if word in off] == []
    assert [word for word in words if word not in on] == []
    assert "save" not in off
    assert "save every 500 steps" in whats_of(on)
    assert "log point every 50 steps: mean loss to the history in memory" in whats_of(off)
    update = whats_of(on)[whats_of(on).index("unscale (fp16)") :][:7]
    assert update == [
        "unscale (fp16)",
        "divide by the items of the window",
        "note the norm of all gradients",
        "clip to norm 1",
        "skip the update if a gradient overflowed",
        "update the parameters: Adam",
        "adapt the scale",
    ]


def test_your_own_code_is_named_by_its_own_path():
    text = make_trainer({"loss": own_loss, "callbacks": [OfSteps()], "metrics": [share_of_first]}).explain()

    assert f"{__name__}.own_loss" in owners_of(text)
    assert f"{__name__}.OfSteps.on_step_end" in owners_of(text)
    assert f"{__name__}.share_of_first" in owners_of(text)


def test_an_event_that_a_callback_does_not_use_is_not_printed():
    text = make_trainer({"callbacks": [OfSteps()]}).explain()

    assert [event for event in EVENTS if event in whats_of(text)] == ["on_step_end"]


def test_several_optimizers_have_their_updates_one_by_one():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    trainer = velodrome.Trainer(
        model, {"one": "adam", "two": "sgd"}, lr=0.1, step_fn=own_step, device="cpu", progress=False, clip_norm=1.0
    )

    whats = whats_of(trainer.explain())

    assert whats.index("an update of one") < whats.index("an update of two")


class PerPosition(nn.Module):
    """Scores of 3 classes at each of 4 positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x.unsqueeze(2)).transpose(1, 2)


def test_targets_of_several_positions_are_counted_as_printed():
    trainer = velodrome.Trainer(PerPosition(), loss="cross_entropy", device="cpu", progress=False)
    text = trainer.explain()
    data = torch.zeros(8, 4), torch.zeros(8, 4, dtype=torch.int64)

    called = record(lambda: trainer.fit(data, batch_size=8, epochs=1))

    counted = [line for line in text.splitlines() if "where a sample has several targets" in line]
    assert len(counted) == 2  # in training and in evaluation
    assert called.count("velodrome.step.losses.Loss.count_items") == 1


def test_a_trainer_that_only_evaluates_has_no_updates():
    text = velodrome.Trainer(tiny_mlp(), None, loss="cross_entropy", device="cpu", progress=False).explain()

    assert "an evaluation, where there are validation data" in whats_of(text)
    assert [what for what in whats_of(text) if "update" in what] == []


class TwoProcesses:
    size = 2

    def sum_gradients(self, parameters, extras):
        raise AssertionError("only described")

    def gather(self, value):
        raise AssertionError("only described")


def test_gradients_of_several_processes_are_summed_before_they_are_divided():
    model = tiny_mlp()
    updates = Updates(
        torch.optim.SGD(model.parameters(), lr=0.1),
        clipping=Clipping(norm=2.0),
        precision=FullPrecision(),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        world=TwoProcesses(),
    )

    whats = [what for what, _ in updates.calls()["update"]]

    assert whats[:4] == [
        "sum gradients and items over 2 processes",
        "divide by the items of the window",
        "note the norm of all gradients",
        "clip to norm 2",
    ]


def test_path_of_what_has_no_name_of_its_own():
    class Called:
        def __call__(self):
            pass

    assert path_of(Called()).endswith("Called.__call__")
    assert path_of(nn.MSELoss()) == "torch.nn.modules.loss.MSELoss.forward"
    assert path_of(types.MethodType(lambda self: None, 1)).endswith("<lambda>")


def test_the_documented_order_is_that_of_a_run(tmp_path):
    recorder = RecordingCallback()
    x, y = tiny_classification(num_samples=16)
    trainer = make_trainer({"callbacks": [recorder]}, tmp_path / "run", checkpoint="every epoch")

    trainer.fit(velodrome.DataLoader((x, y), 8), velodrome.DataLoader((x, y), 16), epochs=1)

    text = (DOCS / "callbacks.md").read_text(encoding="utf-8")
    documented = re.search(r"```text\n((?:on_\w+\n)+)```", text)
    assert documented is not None
    assert recorder.events == documented[1].split()
    assert re.findall(r"^\| `(on_\w+)`", text, flags=re.MULTILINE) == list(EVENTS)
    assert len(EVENTS) <= 10


def test_an_unused_event_calls_nothing(tmp_path):
    used = OfSteps()
    called = record(lambda: fit_with(used, tmp_path / "run"))

    assert all(methods == [] for event, methods in listeners([used]).items() if event != "on_step_end")
    assert [name for name in called if name.startswith("velodrome.callbacks.base.Callback.on_")] == []
    assert called.count(f"{__name__}.OfSteps.on_step_end") == 2  # 16 samples in batches of 8


def fit_with(callback, run_dir):
    x, y = tiny_classification(num_samples=16)
    trainer = make_trainer({"callbacks": [callback]}, run_dir)
    trainer.fit(velodrome.DataLoader((x, y), 8), velodrome.DataLoader((x, y), 16), epochs=1)


@pytest.mark.parametrize(
    ("policy", "what", "owner"),
    [("stop", "stop with an error", "Stop"), ("skip", "skip it", "Skip"), ("rollback", "go back", "Rollback")],
)
def test_what_happens_to_numbers_that_are_not_finite_is_printed(policy, what, owner):
    text = make_trainer({"on_nonfinite": policy}).explain()
    (line,) = [line for line in text.splitlines() if "not finite:" in line]
    assert what in line
    assert line.endswith(f".{owner}._settle")


def test_signals_and_deadline_are_printed():
    assert "the end of 60 seconds" not in make_trainer({}).explain()
    text = make_trainer({"stop_after": "60 seconds"}).explain()
    assert "listen for SIGINT, SIGTERM, SIGUSR1, the job's end, the end of 60 seconds" in text


@pytest.mark.parametrize(("policy", "when"), [("stop", "after a log point"), ("skip", "before each update")])
def test_what_is_looked_at_is_printed_whatever_was_looked_at_last(policy, when):
    x, y = torch.randn(28, 4), torch.randint(0, 3, (28,))
    trainer = velodrome.Trainer(nn.Linear(4, 3), "sgd", loss="cross_entropy", on_nonfinite=policy, progress=False)
    before = trainer.explain()
    trainer.fit((x, y), epochs=1, batch_size=4)  # 7 steps: the next one is none after a log point
    assert f"{when}, look at each gradient: is it finite?" in before
    for words in ("look at the loss: is it finite?", f"{when}, look at each gradient: is it finite?"):
        assert words in trainer.explain()
