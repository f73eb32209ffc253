"""SIGINT, SIGTERM and SIGUSR1 wherever they come: the run is saved, ends there, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from support.programs import environment
from velodrome.checkpoint.files import Files
from velodrome.checkpoint.read import read_state, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.slow

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (22,), generator=torch.Generator().manual_seed(1))
VAL = (X[:10] * 1.1, Y[:10])
EPOCHS = 3
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGUSR1: SystemExit}
STOPPED = (KeyboardInterrupt, SystemExit)


class SignalAt(vd.Callback):
    """Sends this process signals when a moment comes for the n-th time: an event, "train" or "eval" for a loss that is computed there."""

    def __init__(self, moment: str = "", count: int = 1, *numbers: int) -> None:
        self.moment, self.left, self.numbers = moment, count, numbers or (signal.SIGTERM,)

    def _pass(self, moment: str) -> None:
        if moment == self.moment:
            self.left -= 1
            if self.left == 0:
                for number in self.numbers:
                    os.kill(os.getpid(), number)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self._pass("train" if torch.is_grad_enabled() else "eval")
        return functional.cross_entropy(output, target)

    def on_fit_start(self, trainer: vd.Trainer) -> None:
        self._pass("fit_start")

    def on_epoch_start(self, trainer: vd.Trainer) -> None:
        self._pass("epoch_start")

    def on_step_end(self, trainer: vd.Trainer) -> None:
        self._pass("step_end")

    def on_evaluate_end(self, trainer: vd.Trainer, values: Any) -> None:
        self._pass("evaluate_end")

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        self._pass("checkpoint")

    def on_epoch_end(self, trainer: vd.Trainer, row: Any) -> None:
        self._pass("epoch_end")

    def on_fit_end(self, trainer: vd.Trainer) -> None:
        self._pass("fit_end")


class Tally(vd.Callback):
    """Remembers what it was told, draws from a generator of its own, and changes the weights with it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_step_end(self, trainer: vd.Trainer) -> None:
        with torch.no_grad():
            trainer.model[0].bias += 1e-3 * random.random()
        self.told.append("step")

    def on_evaluate_end(self, trainer: vd.Trainer, values: Any) -> None:
        self.told.append("evaluation")

    def on_epoch_end(self, trainer: vd.Trainer, row: Any) -> None:
        self.told.append("epoch")

    def state_dict(self) -> dict[str, Any]:
        return {"told": list(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.told = list(state["told"])


def make(folder: Path | None, at: SignalAt | None = None, *, resume: str = "never", **changes: Any) -> vd.Trainer:
    at = at or SignalAt()
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    arguments: dict[str, Any] = {
        "lr": 0.02, "loss": at.loss, "metrics": ["accuracy"], "seed": 5, "run_dir": folder, "checkpoint": None, "ema": 0.8,
        "log_every": "4 steps", "loggers": ["csv"], "progress": False, "device": "cpu", "accumulate": 2, "scheduler": "cosine",
    }  # fmt: skip
    return vd.Trainer(model, "adam", resume=resume, callbacks=[Tally(), at], **{**arguments, **changes})


def fit(trainer: vd.Trainer) -> vd.FitResult:
    return trainer.fit((X, Y), VAL, batch_size=4, eval_batch_size=4, epochs=EPOCHS)


def explicit(trainer: vd.Trainer) -> vd.FitResult:
    loss, data = trainer._run.engine.loss.function, vd.DataLoader((X, Y), 4, shuffle=True)
    for epoch in trainer.epochs(EPOCHS):
        for x, y in epoch.train(data):
            trainer.step(loss(trainer.model(x), y))
        for x, y in epoch.evaluate(VAL, batch_size=4):
            output = trainer.model(x)
            trainer.log(loss=loss(output, y), accuracy=(output.argmax(1) == y).float())
        for x, _ in epoch.evaluate(VAL, batch_size=5, name="again"):
            trainer.log(size=trainer.model(x).abs().mean())
    return trainer.result


def outcome(trainer: vd.Trainer, result: vd.FitResult) -> dict[str, Any]:
    """Return everything that must be equal, by name."""
    folder = trainer.run_dir
    assert folder is not None
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    groups = ("model", "ema", "optimizer")
    facts: dict[str, Any] = {f"{g} {name}": value for g in groups for name, value in read_tensors(last, g).items()}
    facts |= {f"now {name}": value for name, value in trainer.model.state_dict().items()}
    facts |= {f"average {name}": value for name, value in trainer.averaging.state_dict().items()}
    facts |= {"told": trainer._run.callbacks[0].told, "random": torch.get_rng_state(), "python": random.getstate()}
    facts |= {"history": without_times(result.history), "reason": result.stop_reason, "last": last.name}
    facts["journal"] = without_times(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    facts["progress"] = {name: value for name, value in vars(trainer.progress).items() if name != "seconds"}
    return facts


def without_times(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else repr(x) == repr(y)

    return [
        name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or not equal(a[name], b[name])
    ]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what each loop comes to when nothing disturbs it, computed once."""
    known: dict[Any, dict[str, Any]] = {}

    def compute(loop: Any, checkpoint: str | None = None) -> dict[str, Any]:
        if (loop, checkpoint) not in known:
            trainer = make(tmp_path_factory.mktemp("straight") / "run", checkpoint=checkpoint)
            known[loop, checkpoint] = outcome(trainer, loop(trainer))
        return known[loop, checkpoint]

    return compute


# 22 samples in batches of 4 are 6 micro-batches and 3 updates an epoch; 10 in batches of 4 are 3 evaluation batches.
MOMENTS = [
    ("fit_start", 1), ("epoch_start", 1), ("epoch_start", 2), *[("train", n) for n in (1, 2, 3, 5, 6, 7, 12, 15, 18)],
    *[("step_end", n) for n in (1, 3, 4, 9)], *[("eval", n) for n in (1, 2, 3, 4, 9)],
    *[("evaluate_end", n) for n in (1, 2)], ("epoch_end", 1), ("epoch_end", 2), ("epoch_end", 3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("loop", "checkpoint", "every"),
    [(fit, None, 1), (explicit, None, 1), (fit, "every step", 3), (explicit, "every epoch", 4)],
)
def test_a_run_that_a_signal_stopped_goes_on_as_if_nothing_had_been(
    loop: Any, checkpoint: str | None, every: int, straight: Any, tmp_path: Path
) -> None:
    for index, (moment, count) in enumerate(MOMENTS[::every]):
        folder, number = tmp_path / str(index), list(ENDS)[index % 3]
        stopped = make(folder, SignalAt(moment, count, number), checkpoint=checkpoint)
        with pytest.raises(ENDS[number]):
            loop(stopped)
        record = record_of(folder)
        assert (record["status"], "error" in record) == ("stopped", False), (moment, count)
        assert stopped.result.stop_reason is not None
        assert record["stop_reason"] == str(stopped.result.stop_reason)

        resumed = make(folder, resume="auto", checkpoint=checkpoint)
        assert different(straight(loop, checkpoint), outcome(resumed, loop(resumed))) == [], (moment, count)


def test_what_a_signal_leaves_is_where_it_came(tmp_path: Path) -> None:
    """Negative control: the run really ends at the place that is meant, and not at the epoch's end."""
    at = {}
    for moment, count in (("train", 3), ("step_end", 2), ("eval", 2), ("epoch_end", 1)):
        trainer = make(tmp_path / f"{moment}", SignalAt(moment, count))
        with pytest.raises(SystemExit):
            fit(trainer)
        state = read_state(next((tmp_path / moment / "checkpoints").glob("step-*")))["resume"]
        loop = state["ranks"][0]["loop"]
        done = None if loop is None else loop["batches_done"]
        at[moment] = (
            trainer.progress.micro_batches_done,
            done,
            state["position"]["stage"],
            len(trainer.result.history),
        )

    assert at == {
        "train": (3, 3, "open", 0),  # in the middle of a window
        "step_end": (4, 4, "open", 0),
        "eval": (6, None, "open", 0),  # the training loop is over, and no epoch recorded
        "epoch_end": (6, None, "over", 1),
    }


class Forgets(SignalAt):
    """Drops a piece of what a stop within an evaluation has to know."""

    def __init__(self, piece: str) -> None:
        super().__init__("evaluate_end", 1)
        self.piece = piece

    def on_evaluate_end(self, trainer: vd.Trainer, values: Any) -> None:
        torch.rand(1)
        setattr(trainer._run.position, self.piece, None)
        super().on_evaluate_end(trainer, values)


@pytest.mark.parametrize(("piece", "wrong"), [("callbacks", "told"), ("after_training", "random")])
def test_what_was_before_an_evaluation_is_needed(piece: str, wrong: str, straight: Any, tmp_path: Path) -> None:
    """Negative control: without the callbacks and the random state of before, the run that goes on is another one."""
    with pytest.raises(SystemExit):
        fit(make(tmp_path / "run", Forgets(piece)))
    resumed = make(tmp_path / "run", resume="auto")
    assert wrong in different(straight(fit), outcome(resumed, fit(resumed)))


def test_a_signal_in_an_evaluation_records_nothing_of_it(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", SignalAt("eval", 2))
    with pytest.raises(SystemExit) as caught:
        fit(trainer)

    assert caught.value.code == 143
    assert trainer.result.stop_reason is vd.StopReason.TERMINATED
    rows = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert [name for row in rows for name in row if name.startswith("val/")] == []
    assert trainer._run.callbacks[0].told == ["step"] * 3  # no evaluation, no epoch


def test_the_reasons_and_the_line_name_the_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, reason in ((signal.SIGINT, "INTERRUPTED"), (signal.SIGUSR1, "TERMINATED")):
        folder = tmp_path / reason
        trainer = make(folder, SignalAt("step_end", 4, number))
        with pytest.raises(ENDS[number]):
            fit(trainer)
        assert trainer.result.stop_reason is vd.StopReason[reason]
        line = f"{number.name}: stopped after step 4, in epoch 2; saved in {folder}."
        assert line in capsys.readouterr().err
        assert line in (folder / "log.txt").read_text()


def test_the_line_of_an_epoch_that_is_over_comes_before_that_of_the_signal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    callback = SignalAt("epoch_end", 2)
    trainer = vd.Trainer(
        nn.Linear(6, 3), "sgd", lr=0.1, loss="cross_entropy", run_dir=tmp_path / "run", callbacks=[callback], device="cpu", loggers=[]
    )  # fmt: skip
    with pytest.raises(SystemExit):
        trainer.fit((X, Y), epochs=EPOCHS, batch_size=11)
    *_, epoch, stopped = capsys.readouterr().err.splitlines()
    assert epoch.startswith("epoch 2/3  train loss")
    assert stopped.startswith("SIGTERM: stopped after step 4, in epoch 3; saved in")


def test_without_a_run_dir_the_line_says_that_nothing_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(make(None, SignalAt("train", 5)))
    assert "stopped after step 2, in epoch 1. Nothing was saved: the trainer has no run_dir." in capsys.readouterr().err


def test_before_the_first_step_there_is_nothing_to_save_and_the_run_begins_anew(
    straight: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(make(tmp_path / "run", SignalAt("train", 1)))
    assert "SIGTERM: stopped before the first step. There is no checkpoint in" in capsys.readouterr().err
    assert record_of(tmp_path / "run")["status"] == "stopped"

    resumed = make(tmp_path / "run", resume="auto")
    assert different(straight(fit), outcome(resumed, fit(resumed))) == []


# -- during a save, and twice -----------------------------------------------------------------------------------------------


class SignalInSave(Files):
    """Sends signals at the n-th operation of a save."""

    def __init__(self, at: int, *numbers: int) -> None:
        self.count, self.at, self.numbers = 0, at, numbers

    def fsync_dir(self, path: Path) -> None:
        self.count += 1
        if self.count == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        super().fsync_dir(path)


def saves_with(trainer: vd.Trainer, files: Files) -> vd.Trainer:
    """Have the run's store use these file operations, from its begin on."""

    class UseFiles(vd.Callback):
        def on_fit_start(self, trainer: vd.Trainer) -> None:
            trainer._run.files.checkpoints._saver._store._files = files

    trainer._run.callbacks.append(UseFiles())
    return trainer


def test_a_signal_during_a_save_lets_it_end(straight: Any, tmp_path: Path) -> None:
    for number in ENDS:
        folder = tmp_path / str(number)
        trainer = saves_with(make(folder, checkpoint="every 2 steps"), SignalInSave(1, number))
        with pytest.raises(ENDS[number]):
            fit(trainer)
        assert [path.name for path in (folder / "checkpoints").glob("*step*")] == ["step-00000002"]
        assert record_of(folder)["saved_step"] == 2

        resumed = make(folder, resume="auto", checkpoint="every 2 steps")
        assert different(straight(fit, "every 2 steps"), outcome(resumed, fit(resumed))) == []


def test_a_second_interrupt_ends_a_save_under_way_and_the_one_before_stays(straight: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Two of a save are of folders: the second save is that of step 4.
    files = SignalInSave(4, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(saves_with(make(folder, checkpoint="every 2 steps"), files))

    assert files.count >= 4
    record = record_of(folder)
    assert (record["status"], record["stop_reason"]) == ("stopped", str(vd.StopReason.INTERRUPTED))
    assert "KeyboardInterrupt" in record["error"]
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert [name for name in names if ".tmp" in name] == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = make(folder, resume="auto", checkpoint="every 2 steps")
    assert different(straight(fit, "every 2 steps"), outcome(resumed, fit(resumed))) == []


def test_two_interrupts_at_once_save_nothing(tmp_path: Path, straight: Any) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(make(folder, SignalAt("step_end", 5, signal.SIGINT, signal.SIGINT), checkpoint="every 2 steps"))
    assert max(path.name for path in (folder / "checkpoints").glob("step-*")) == "step-00000004"
    assert record_of(folder)["status"] == "stopped"

    resumed = make(folder, resume="auto", checkpoint="every 2 steps")
    assert different(straight(fit, "every 2 steps"), outcome(resumed, fit(resumed))) == []


def test_two_terminations_are_one(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", SignalAt("step_end", 5, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM))
    with pytest.raises(SystemExit):
        fit(trainer)
    assert record_of(tmp_path / "run")["saved_step"] == 5


def test_a_signal_after_the_last_step_finds_the_run_done_and_is_obeyed_all_the_same(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", SignalAt("fit_end", 1))
    with pytest.raises(SystemExit) as caught:
        fit(trainer)
    assert caught.value.code == 143
    assert (record_of(tmp_path / "run")["status"], trainer.result.stop_reason) == ("done", vd.StopReason.EPOCHS)


def test_a_request_to_stop_before_the_signal_is_not_forgotten(tmp_path: Path) -> None:
    class StopAt(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            if trainer.progress.steps_done == 2:
                trainer.stop("early")

    def run(folder: Path, at: SignalAt | None = None, resume: str = "never") -> vd.Trainer:
        trainer = make(folder, at, resume=resume)
        trainer._run.callbacks.append(StopAt())
        with suppress(*STOPPED):
            fit(trainer)
        return trainer

    first = run(tmp_path / "straight")
    for index, at in enumerate((SignalAt("step_end", 2), SignalAt("eval", 1))):
        run(tmp_path / str(index), at)
        second = run(tmp_path / str(index), resume="auto")
        assert second.result.stop_reason is first.result.stop_reason is vd.StopReason.EARLY
        assert without_times(second.result.history) == without_times(first.result.history)


# -- a loop of one's own ----------------------------------------------------------------------------------------------------


def test_a_loop_that_the_user_left_is_finished_before_the_run_is_saved(tmp_path: Path) -> None:
    def run(folder: Path, *, kill: bool, resume: str = "never") -> vd.Trainer:
        trainer = make(folder, resume=resume)
        with suppress(*STOPPED):
            for epoch in trainer.epochs(2):
                for index, (x, y) in enumerate(epoch.train((X, Y), batch_size=4)):
                    trainer.step(functional.cross_entropy(trainer.model(x), y))
                    if index == 2:
                        break  # a window is open
                if kill:
                    os.kill(os.getpid(), signal.SIGTERM)
        return trainer

    first = run(tmp_path / "straight", kill=False)
    run(tmp_path / "run", kill=True)
    state = read_state(next((tmp_path / "run" / "checkpoints").glob("step-*")))
    assert "resume" in state
    second = run(tmp_path / "run", kill=False, resume="auto")

    assert without_times(second.result.history) == without_times(first.result.history)
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))


def test_nothing_after_the_loop_that_was_left_runs(tmp_path: Path) -> None:
    """A loop of one's own never takes part of an epoch for a whole one."""
    trainer, seen = make(tmp_path / "run"), []
    with pytest.raises(KeyboardInterrupt):
        for epoch in trainer.epochs(2):
            for x, y in epoch.train((X, Y), batch_size=4):
                trainer.step(functional.cross_entropy(trainer.model(x), y))
                os.kill(os.getpid(), signal.SIGINT)
            seen.append("after training")
    assert seen == []
    assert trainer.result.stop_reason is vd.StopReason.INTERRUPTED


def test_an_error_after_the_signal_is_the_users_own_and_nothing_is_saved_for_it(tmp_path: Path) -> None:
    class Failing(SignalAt):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            super().on_step_end(trainer)
            if trainer.progress.steps_done == 5:
                raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fit(make(tmp_path / "run", Failing("step_end", 5)))
    assert record_of(tmp_path / "run")["status"] == "failed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# -- handlers ---------------------------------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in ENDS]


def test_handlers_are_there_during_a_run_only_however_it_ends() -> None:
    before = handlers()
    assert before == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    trainer = make(None)
    fit(trainer)
    assert handlers() == before

    for epoch in make(None).epochs(2):
        for x, y in epoch.train((X, Y), batch_size=4):
            assert all(callable(each) and each is not signal.default_int_handler for each in handlers())
            del x, y
            break
        break
    assert handlers() == before

    with pytest.raises(vd.errors.DataError):
        make(None, scheduler=None).fit([], epochs=1)
    assert handlers() == before


@pytest.fixture
def own_handler() -> Any:
    """Count SIGTERMs with a handler of the user's own."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    yield told
    signal.signal(signal.SIGTERM, before)


def test_a_handler_of_the_users_own_hears_it_too_and_is_put_back(tmp_path: Path, own_handler: list[int]) -> None:
    mine = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit(make(tmp_path / "run", SignalAt("step_end", 3)))
    assert own_handler == [signal.SIGTERM]
    assert record_of(tmp_path / "run")["saved_step"] == 3
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_handler_that_is_put_in_place_during_the_run_stays(own_handler: list[int]) -> None:
    class Takes(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    trainer = make(None)
    trainer._run.callbacks.append(Takes())
    fit(trainer)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        assert len(fit(make(tmp_path / "run", SignalAt("step_end", 3, signal.SIGUSR1))).history) == EPOCHS
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_in_another_thread_leaves_signals_alone() -> None:
    seen: list[Any] = []

    class Look(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            seen.append(handlers())

    before, trainer = handlers(), make(None)
    trainer._run.callbacks.append(Look())
    thread = threading.Thread(target=fit, args=(trainer,))
    thread.start()
    thread.join()

    assert trainer.result.stop_reason is vd.StopReason.EPOCHS
    assert seen == [before] * 9
    assert handlers() == before


def test_a_run_inside_of_a_run_is_finished_and_the_outer_one_is_saved(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner", SignalAt("step_end", 2))

    class Nests(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            if trainer.progress.steps_done == 4:
                fit(inner)
                assert handlers()[1] != signal.SIG_DFL  # the outer ones are still there

    outer = make(tmp_path / "outer")
    outer._run.callbacks.append(Nests())
    with pytest.raises(SystemExit):
        fit(outer)

    assert inner.result.stop_reason is vd.StopReason.EPOCHS
    assert (record_of(tmp_path / "outer")["status"], record_of(tmp_path / "outer")["saved_step"]) == ("stopped", 4)
    assert handlers()[1] == signal.SIG_DFL


def test_a_process_forked_during_a_run_dies_of_the_signal_as_ever() -> None:
    codes: list[int] = []

    class Forks(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            if trainer.progress.steps_done != 2:
                return
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(tell, b"!")
                signal.sigtimedwait([], 10)
                os._exit(0)
            os.read(ready, 1)
            os.kill(child, signal.SIGTERM)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    trainer = make(None)
    trainer._run.callbacks.append(Forks())
    fit(trainer)
    assert codes == [-signal.SIGTERM]


class Interrupting(torch.utils.data.Dataset):
    """Stands for a terminal, which sends Ctrl-C to a worker in the middle of a batch, and to the process that waits for it."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        if index == 10 and torch.utils.data.get_worker_info() is not None:
            time.sleep(0.7)  # by now the training process waits for this batch
            os.kill(os.getppid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return X[index], Y[index]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_that_gets_the_interrupt_too_finishes_the_batch_that_is_waited_for(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", accumulate=1)
    loader = vd.DataLoader(Interrupting(), 4, num_workers=1, prefetch_factor=1, multiprocessing_context="fork")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader, epochs=1)
    record = record_of(tmp_path / "run")
    assert record["status"] == "stopped"
    assert 1 <= record["saved_step"] <= 3  # the batch of sample 10 is the third, and is fetched ahead


SPAWNED = """
import os, signal, sys, time
import torch
import velodrome as vd

X = torch.arange(48.0).reshape(24, 2)

class Data(torch.utils.data.Dataset):
    def __init__(self, interrupts):
        self.interrupts = interrupts
    def __len__(self):
        return 24
    def __getitem__(self, index):
        if self.interrupts and index == 14:
            time.sleep(0.7)
            os.kill(os.getppid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return X[index], X[index, :1]

def train(folder, interrupts=False, resume="never"):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    trainer = vd.Trainer(model, "adam", loss="mse", seed=1, run_dir=folder, resume=resume, device="cpu", progress=False, checkpoint=None)
    loader = vd.DataLoader(Data(interrupts), 4, num_workers=1, prefetch_factor=1, multiprocessing_context="spawn")
    try:
        trainer.fit(loader, epochs=1)
    except KeyboardInterrupt:
        print("interrupted after step", trainer.progress.steps_done)
    return model

if __name__ == "__main__":
    straight = train("straight")
    train("run", interrupts=True)
    resumed = train("run", resume="auto")
    print("equal", torch.equal(straight.weight, resumed.weight))
"""


def test_spawned_workers_that_end_with_the_interrupt_do_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["interrupted after step 3", "equal True"]
