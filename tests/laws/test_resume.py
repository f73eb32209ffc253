"""Law 3: a run that was cut at any step and went on ends like the one that was never cut: weights, state, random numbers, records."""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (22,), generator=torch.Generator().manual_seed(1))
VAL = (X[:10] * 1.1, Y[:10])


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    """Ends the run as soon as the checkpoint of a step is on the disk: nothing that comes later happens."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done >= self.step:
            raise Cut


class Noise(vd.Callback):
    """Draws from the generators that dropout does not use, so that their states matter to the weights."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        with torch.no_grad():
            trainer.model[0].bias += 1e-3 * (random.random() + numpy.random.rand())


class Tally(vd.Callback):
    """Remembers numbers, and says so."""

    def __init__(self) -> None:
        self.seen = torch.zeros(2)
        self.epochs: list[int] = []

    def on_step_end(self, trainer: vd.Trainer) -> None:
        self.seen += torch.tensor([1.0, trainer.optimizer.param_groups[0]["lr"]])

    def on_epoch_end(self, trainer: vd.Trainer, row: dict[str, Any]) -> None:
        self.epochs.append(row["epoch"])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen.clone(), "epochs": list(self.epochs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.epochs = state["seen"].clone(), list(state["epochs"])


def make_model() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


@dataclass(frozen=True)
class Case:
    """One row of the table: 22 samples in batches of 4 are 6 micro-batches, the last of 2 samples."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 2
    patience: int = 0

    def make(self, folder: Path, *, resume: str = "never", cut_at: int | None = None, **changes: Any) -> vd.Trainer:
        callbacks: list[Any] = [Noise(), Tally()]
        if self.patience:
            callbacks.append(vd.EarlyStopping("val/loss", patience=self.patience, min_delta=10.0, restore_best=True))
        callbacks += [] if cut_at is None else [CutAt(cut_at)]
        arguments: dict[str, Any] = {
            "optimizer": "adam", "lr": 0.02, "loss": "cross_entropy", "metrics": ["accuracy"], "seed": 5, "run_dir": folder,
            "checkpoint": "every step", "log_every": "4 steps", "loggers": ["csv"], "progress": False, "device": "cpu",
        }  # fmt: skip
        return vd.Trainer(
            make_model(), resume=resume, callbacks=callbacks, **{**arguments, **self.arguments, **changes}
        )

    def train(self, trainer: vd.Trainer) -> vd.FitResult:
        return trainer.fit((X, Y), VAL, batch_size=4, epochs=self.epochs)


class Steps(Case):
    """A budget of steps, whose last is in the middle of an epoch."""

    def train(self, trainer: vd.Trainer) -> vd.FitResult:
        return trainer.fit((X, Y), VAL, batch_size=4, steps=9)


class TwoOptimizers(Case):
    """An explicit loop with two optimizers that take turns within a batch, and a window that is longer for one of them."""

    def make(self, folder: Path, **changes: Any) -> vd.Trainer:
        model = nn.ModuleDict({"body": make_model(), "head": nn.Linear(3, 3)})
        cut_at = changes.pop("cut_at", None)
        return vd.Trainer(
            model, {"body": "adam", "head": "sgd"}, lr=0.02, seed=5, run_dir=folder, checkpoint="every step", log_every="4 steps",
            loggers=["csv"], progress=False, device="cpu", callbacks=[] if cut_at is None else [CutAt(cut_at)], accumulate=2, **changes,
        )  # fmt: skip

    def train(self, trainer: vd.Trainer) -> vd.FitResult:
        model, train = trainer.model, vd.DataLoader((X, Y), 4, shuffle=True)
        for epoch in trainer.epochs(self.epochs):
            for x, y in epoch.train(train):
                hidden = model["body"](x)
                loss = functional.cross_entropy(hidden, y)
                trainer.step(loss, optimizer="body")
                if (
                    trainer.progress.samples_in_epoch % 3
                ):  # its windows are open where those of the body are closed, and saved
                    trainer.step(functional.cross_entropy(model["head"](hidden.detach()), y), optimizer="head")
                trainer.log(size=float(len(x)), hidden=hidden.mean())
            for x, y in epoch.evaluate(VAL, batch_size=5):
                trainer.log(accuracy=(model["body"](x).argmax(1) == y).float())
        return trainer.result


CASES = [
    Case("plain"),
    Case("accumulate", {"accumulate": 4, "clip_norm": 0.5, "grad_norms": True}),
    Case("ema and clip", {"ema": vd.EMA(0.8), "clip_value": 0.1}),
    Case("swa", {"ema": vd.SWA(start="1 epochs", every="1 epochs")}),
    Case("per step", {"scheduler": "one_cycle", "optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}),
    Case("per epoch", {"scheduler": "cosine", "scheduler_every": "epoch", "scheduler_args": {"warmup": 2}}),
    Case("torch schedule", {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)}),
    Case("plateau", {"scheduler": "plateau", "scheduler_args": {"patience": 0, "threshold": 5.0}}),
    Case("early stopping", epochs=4, patience=1),
    Case("bf16", {"precision": "bf16"}),
    Case("fp16", {"precision": "fp16", "scaler_args": {"init_scale": 2.0**40, "growth_interval": 3}}),
    TwoOptimizers("two optimizers"),
    Steps("steps"),
]


def outcome(case: Case, trainer: vd.Trainer) -> dict[str, Any]:
    """Train to the end and return everything that must be equal, by name."""
    result = case.train(trainer)
    folder = trainer.run_dir
    assert folder is not None
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    state = read_state(last)["resume"]
    groups = ("model", "optimizer", "rng-rank0", "sums-rank0", "callbacks", "window-rank0")
    for name in ("journal_bytes", "row", "keeping", "position"):  # times are in it
        state.pop(name)
    for own in state["ranks"]:
        own.pop("phase")
    facts: dict[str, Any] = {
        f"{group} {name}": value for group in groups for name, value in read_tensors(last, group).items()
    }
    facts |= {f"model now {name}": value for name, value in trainer.model.state_dict().items()}
    facts |= {f"average {name}": value for name, value in trainer.averaging.state_dict().items()}
    facts["averaging"] = read_state(last)["averaging"]
    facts |= {"random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist())}
    facts |= {"state": state, "history": rows_without_times(result.history), "progress": counters(trainer)}
    facts["journal"] = rows_without_times(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    facts["csv"] = [line.split(",")[:3] for line in (folder / "metrics.csv").read_text().splitlines()]
    facts["best"] = rows_without_times([result.best or {}])
    facts["reason"] = result.stop_reason
    return facts


def rows_without_times(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def counters(trainer: vd.Trainer) -> dict[str, int]:
    return {name: value for name, value in vars(trainer.progress).items() if name != "seconds"}


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the names of what is not equal, bit for bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else repr(a[name]) == repr(b[name]))
    ]


def cut(case: Case, folder: Path, step: int, *, resume: str = "never") -> None:
    with pytest.raises(Cut):
        case.train(case.make(folder, cut_at=step, resume=resume))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what each case comes to when nothing cuts it, computed once."""
    known: dict[str, dict[str, Any]] = {}

    def compute(case: Case) -> dict[str, Any]:
        if case.name not in known:
            known[case.name] = outcome(case, case.make(tmp_path_factory.mktemp("straight") / "run"))
        return known[case.name]

    return compute


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_cut_at_any_step_ends_like_the_one_that_was_not(case: Case, straight: Any, tmp_path: Path) -> None:
    expected = straight(case)
    last = expected["progress"]["steps_done"]
    for step in range(1, last + 1):
        folder = tmp_path / str(step)
        cut(case, folder, step)

        assert different(expected, outcome(case, case.make(folder, resume="auto"))) == [], f"cut at step {step}"


@pytest.mark.parametrize("steps", [(3, 4), (2, 8, 11), (5, 6, 7), (6, 12)])
def test_a_run_may_be_cut_several_times(steps: tuple[int, ...], straight: Any, tmp_path: Path) -> None:
    case = CASES[2]
    for step in steps:
        cut(case, tmp_path / "run", step, resume="auto")

    assert different(straight(case), outcome(case, case.make(tmp_path / "run", resume="auto"))) == []


# -- negative controls: each thing that is saved is needed -------------------------------------------------------------------

CONTROL = Case(
    "control",
    {
        "ema": vd.EMA(0.8),
        "scheduler": "cosine",
        "checkpoint": vd.Checkpointing(every="every step", keep_last=50, monitor="epoch", mode="min"),
    },
)
GROUPS = ("model", "ema", "optimizer", "window-rank0", "rng-rank0", "sums-rank0", "callbacks")
OLDER = (
    "model", "ema", "progress", "averaging", "optimizers", "updates", "callbacks", "keeping", "row", "journal_bytes", "random",
    "random/python", "random/numpy", "random/torch", "phase", "loop",
)  # fmt: skip
"""Items that are taken from an older checkpoint: the run must end differently, or be refused."""
OTHER = {
    "settings": {"seed": 6},
    "order_seed": 6,
    "position": {"stage": "between"},
    "data": {"samples": 23, "batch size": 4, "shuffle": True},
    "stop": "requested",
    "ranks": [],
}
"""Items that are the same in every checkpoint of a run, and what they are changed to."""
ELSEWHERE = {
    "last_averaged_step": "test_an_average_is_taken_twice_without_the_step_of_the_last_one",
    "windows": "test_gradients_of_an_open_window_are_saved_and_needed",
    "loop_start": "test_the_order_of_a_sampler_is_lost_without_the_random_state_at_its_start",
    "buffers": "test_resume_worlds.py: test_callbacks_and_buffers_that_differ_between_processes_come_back_to_each",
    "own callbacks": "test_resume_worlds.py: test_callbacks_and_buffers_that_differ_between_processes_come_back_to_each",
    "nonfinite": "faults/test_nonfinite.py: test_what_is_counted_in_a_row_is_counted_across_a_resume",
    "part_sizes": "faults/test_out_of_memory.py: test_negative_control_a_run_that_forgot_the_size_ends_differently",
    "evaluated_weights": "test_averages.py: test_load_model_takes_the_weights_that_were_evaluated_because_the_checkpoint_says_which",
}


def items_of(path: Path) -> set[str]:
    """Return the names of everything that a checkpoint holds."""
    state = read_state(path)
    own = {("own callbacks" if name == "callbacks" else name) for name in state["resume"]["ranks"][0]}
    groups = {each.stem for each in path.glob("*.safetensors")} - {"optimizer", "callbacks"}
    groups = {name for name in groups if not name.endswith("-rank0")}  # these hold tensors of entries of `state.json`
    return groups | {name for name in state if name != "resume"} | set(state["resume"]) | own


def test_every_saved_item_has_a_negative_control(tmp_path: Path) -> None:
    cut(CONTROL, tmp_path / "run", 9)

    assert items_of(tmp_path / "run" / "checkpoints" / "step-00000009") == {
        name for name in {*OLDER, *OTHER, *ELSEWHERE} if "/" not in name
    }


def write_again(folder: Path, step: int, change: Any) -> None:
    """Write a checkpoint again with something changed; the files are whole and their hashes true."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    held = {each.stem: read_tensors(path, each.stem) for each in path.glob("*.safetensors")}
    state = read_state(path)
    change(state, held)
    run_id = json.loads((folder / "run.json").read_text())["id"]
    CheckpointStore(folder / "checkpoints", run_id=run_id).save(step, held, state)


def make_older(folder: Path, item: str, *, step: int, older: int) -> None:
    """Replace one item in a checkpoint by what it was in an older one."""
    old_path = folder / "checkpoints" / f"step-{older:08d}"
    old_state = read_state(old_path)
    old = {each.stem: read_tensors(old_path, each.stem) for each in old_path.glob("*.safetensors")}

    def change(state: dict[str, Any], held: dict[str, dict[str, torch.Tensor]]) -> None:
        if item in ("model", "ema"):
            held[item] = old[item]
            return
        for group, tensors in held.items():
            mine = [name for name in [*tensors, *old[group]] if f"{name}/".startswith(f"{item}/")]
            kept = {name: value for name, value in tensors.items() if name not in mine}
            held[group] = kept | {name: old[group][name] for name in mine if name in old[group]}
        first, *inner = item.split("/")
        for new, before in ((state, old_state), (state["resume"], old_state["resume"])):
            if first in new and not inner:
                new[first] = before[first]
        new, before = state["resume"]["ranks"][0], old_state["resume"]["ranks"][0]
        if first in new and first != "callbacks":
            if inner:
                new[first] = {**new[first], inner[0]: before[first][inner[0]]}
            else:
                new[first] = before[first]

    write_again(folder, step, change)


def end_of(case: Case, folder: Path) -> dict[str, Any]:
    """Return how the run ends that goes on; an error is an end too."""
    try:
        return outcome(case, case.make(folder, resume="auto"))
    except vd.errors.VelodromeError as error:
        return {"refused": error.message}


@pytest.mark.parametrize("item", OLDER)
def test_with_an_older_saved_item_the_run_ends_differently(item: str, straight: Any, tmp_path: Path) -> None:
    cut(CONTROL, tmp_path / "run", 9)
    make_older(tmp_path / "run", item, step=9, older=3)

    assert different(straight(CONTROL), end_of(CONTROL, tmp_path / "run")) != []


@pytest.mark.parametrize("item", OTHER)
def test_with_another_saved_item_the_run_ends_differently(item: str, straight: Any, tmp_path: Path) -> None:
    cut(CONTROL, tmp_path / "run", 9)

    def change(state: dict[str, Any], held: Any) -> None:
        del held
        table = state["resume"] if item in state["resume"] else state["resume"]["ranks"][0]
        table[item] = {**table[item], **OTHER[item]} if isinstance(OTHER[item], dict) else OTHER[item]

    write_again(tmp_path / "run", 9, change)

    assert different(straight(CONTROL), end_of(CONTROL, tmp_path / "run")) != []


def test_the_order_of_a_sampler_is_lost_without_the_random_state_at_its_start(tmp_path: Path) -> None:
    case = Case("sampler")
    first = case.make(tmp_path / "a")
    first.fit(weighted(), epochs=2)
    results = []
    for folder, change in (("b", lambda state, held: None), ("c", _without_loop_start)):
        with pytest.raises(Cut):
            case.make(tmp_path / folder, cut_at=7).fit(weighted(), epochs=2)
        write_again(tmp_path / folder, 7, change)  # the second of five batches of the second epoch
        torch.manual_seed(99)
        again = case.make(tmp_path / folder, resume="auto")
        again.fit(weighted(), epochs=2)
        results.append(all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values())))

    assert results == [True, False]


def _without_loop_start(state: dict[str, Any], held: dict[str, dict[str, torch.Tensor]]) -> None:
    state["resume"]["ranks"][0]["loop_start"] = None
    held["rng-rank0"] = {name: value for name, value in held["rng-rank0"].items() if not name.startswith("loop_start")}


def test_a_checkpoint_that_was_written_again_unchanged_is_as_good(straight: Any, tmp_path: Path) -> None:
    cut(CONTROL, tmp_path / "run", 9)
    make_older(tmp_path / "run", "nothing", step=9, older=3)  # the control of the controls above

    assert different(straight(CONTROL), outcome(CONTROL, CONTROL.make(tmp_path / "run", resume="auto"))) == []


def test_gradients_of_an_open_window_are_saved_and_needed(straight: Any, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "two optimizers")
    folder = tmp_path / "run"
    for step in range(1, 10):
        cut(case, folder, step, resume="auto")
        path = sorted((folder / "checkpoints").glob("step-*"))[-1]
        if read_tensors(path, "window-rank0"):
            break
    state, tensors = read_state(path), {group: read_tensors(path, group) for group in GROUPS if group != "ema"}
    assert sorted(tensors["window-rank0"]) == ["windows/head/gradients/head.bias", "windows/head/gradients/head.weight"]
    state["resume"]["ranks"][0]["windows"]["head"]["gradients"], tensors["window-rank0"] = {}, {}
    run_id = json.loads((folder / "run.json").read_text())["id"]
    CheckpointStore(folder / "checkpoints", run_id=run_id).save(int(path.name[5:]), tensors, state)

    assert "model head.bias" in different(straight(case), outcome(case, case.make(folder, resume="auto")))


# -- cuts elsewhere ----------------------------------------------------------------------------------------------------------


class Raise(vd.Callback):
    """Ends the run at an event of an epoch."""

    def __init__(self, event: str, epoch: int, *, save: bool = False) -> None:
        self.epoch, self.save = epoch, save
        setattr(self, event, self._raise)

    def _raise(self, trainer: vd.Trainer, *details: Any) -> None:
        if trainer.progress.epoch == self.epoch:
            if self.save:
                trainer.save()
            raise Cut


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize(
    ("event", "epoch"), [("on_epoch_start", 2), ("on_evaluate_end", 1), ("on_evaluate_end", 2), ("on_epoch_end", 2)]
)
@pytest.mark.parametrize("every", ["every epoch", "every 5 steps"])
def test_a_run_cut_between_steps_ends_like_the_one_that_was_not(
    event: str, epoch: int, every: str, save: bool, tmp_path: Path
) -> None:
    case = Case("between", {"checkpoint": every, "ema": vd.EMA(0.8), "scheduler": "plateau"}, epochs=3, patience=2)
    expected = outcome(case, case.make(tmp_path / "straight"))
    trainer = case.make(tmp_path / "run")
    trainer._run.callbacks.append(Raise(event, epoch, save=save))
    with pytest.raises(Cut):
        case.train(trainer)
    random.seed(99)  # another process
    torch.manual_seed(99)

    assert different(expected, outcome(case, case.make(tmp_path / "run", resume="auto"))) == []


@pytest.mark.parametrize("step", [None, -1])
def test_an_average_is_taken_twice_without_the_step_of_the_last_one(step: int | None, tmp_path: Path) -> None:
    case = Case(
        "swa", {"checkpoint": None, "ema": vd.SWA(start="1 epochs", every="1 epochs", evaluate="raw")}, epochs=3
    )
    expected = outcome(case, case.make(tmp_path / "straight"))
    trainer = case.make(tmp_path / "run")
    trainer._run.callbacks.append(Raise("on_evaluate_end", 3, save=True))
    with pytest.raises(Cut):
        case.train(trainer)

    def change(state: dict[str, Any], held: Any) -> None:
        del held
        assert (
            state["resume"]["last_averaged_step"] == 18
        )  # three epochs of six steps: the average is made, the epoch is not over
        state["resume"]["last_averaged_step"] = 18 if step is None else step

    write_again(tmp_path / "run", 18, change)

    differs = different(expected, outcome(case, case.make(tmp_path / "run", resume="auto")))
    assert ("average 0.weight" in differs) == (step is not None), differs


class SaveInside(vd.Callback):
    """Saves within the batch, before its metrics are measured, and then ends the run a batch later."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == 4:
            trainer.save()
        if trainer.progress.steps_done == 5:
            raise Cut


def test_a_save_within_a_batch_is_completed_when_the_batch_is_over(tmp_path: Path) -> None:
    case = Case("inside", {"checkpoint": None})
    expected = outcome(case, case.make(tmp_path / "straight"))
    trainer = case.make(tmp_path / "run")
    trainer._run.callbacks.append(SaveInside())
    with pytest.raises(Cut):
        case.train(trainer)

    assert different(expected, outcome(case, case.make(tmp_path / "run", resume="auto"))) == []


def test_a_loop_that_was_left_within_a_batch_is_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("left", {"checkpoint": None})
    trainer = case.make(tmp_path / "run")
    for epoch in trainer.epochs(2):
        for x, y in epoch.train((X, Y), batch_size=4):
            if trainer.progress.steps_done == 3:
                break
            trainer.step(functional.cross_entropy(trainer.model(x), y))
        else:
            continue
        break

    expected = outcome(case, case.make(tmp_path / "straight"))
    again = case.make(tmp_path / "run", resume="auto")
    assert different(expected, outcome(case, again)) == []
    said = capsys.readouterr().err
    assert "begins anew" in said
    assert "made within a batch, and the loop was left there" in said


def test_an_unseeded_run_goes_on_in_the_order_of_the_first_process(tmp_path: Path) -> None:
    case = Case("unseeded", {"seed": None})
    torch.manual_seed(31)
    random.seed(1), numpy.random.seed(2)
    straight = case.make(tmp_path / "straight")  # building it draws nothing but what `make_model` seeds
    torch.manual_seed(31)
    expected = outcome(case, straight)
    for step in (3, 6, 8):
        torch.manual_seed(31)
        random.seed(1), numpy.random.seed(2)
        trainer = case.make(tmp_path / str(step), cut_at=step)
        torch.manual_seed(31)
        with pytest.raises(Cut):
            case.train(trainer)
        torch.manual_seed(1000 + step)

        again = case.make(tmp_path / str(step), resume="auto")
        torch.manual_seed(2000 + step)
        assert different(expected, outcome(case, again)) == []


class Squares(torch.utils.data.Dataset[Any]):
    """Samples with in-process augmentation; notes what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return X[index] + 0.1 * torch.rand(6), Y[index]


def test_skipped_samples_are_not_read(tmp_path: Path) -> None:
    case = Case("seek")
    straight, cut_short, rest = Squares(), Squares(), Squares()
    first = case.make(tmp_path / "a").fit(vd.DataLoader(straight, 4, shuffle=True), epochs=2)
    with pytest.raises(Cut):
        case.make(tmp_path / "b", cut_at=8).fit(vd.DataLoader(cut_short, 4, shuffle=True), epochs=2)
    second = case.make(tmp_path / "b", resume="auto").fit(vd.DataLoader(rest, 4, shuffle=True), epochs=2)

    assert [*cut_short.read, *rest.read] == straight.read
    assert len(rest.read) == 44 - 30  # step 8 is the second of the second epoch: 22 + 8 samples were done
    assert rows_without_times(second.history) == rows_without_times(first.history)


def test_ready_batches_are_read_up_to_the_position(tmp_path: Path) -> None:
    case = Case("batches")
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)]
    first = case.make(tmp_path / "a").fit(batches, epochs=2)
    with pytest.raises(Cut):
        case.make(tmp_path / "b", cut_at=7).fit(batches, epochs=2)
    second = case.make(tmp_path / "b", resume="auto").fit(list(batches), epochs=2)

    assert rows_without_times(second.history) == rows_without_times(first.history)


class Stateful:
    """Batches with a position of their own, as torchdata's StatefulDataLoader has; shuffled by the global generator."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self._order: list[int] = []
        self._next = 0
        self._is_loaded = False

    def __iter__(self) -> Any:
        if not self._is_loaded:
            self._order, self._next = torch.randperm(5).tolist(), 0
        self._is_loaded = False
        while self._next < 5:
            index = self._order[self._next]
            self._next += 1
            self.read.append(index)
            yield X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self._order), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._next, self._is_loaded = state["order"], state["next"], True


def in_random_order() -> Any:
    """Yield batches in an order that the global generator decides when the epoch begins."""
    for index in torch.randperm(5).tolist():
        yield X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def weighted() -> vd.DataLoader:
    dataset = torch.utils.data.TensorDataset(X, Y)
    sampler = torch.utils.data.WeightedRandomSampler(torch.arange(1.0, 23.0), 20)
    return vd.DataLoader(dataset, 4, sampler=sampler)


def in_batches() -> vd.DataLoader:
    sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(range(20)), 4, drop_last=False)
    return vd.DataLoader(Squares(), batch_sampler=sampler)


def rebuilt() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X[:20], Y[:20]), 4, shuffle=True)


def with_workers() -> vd.DataLoader:
    return vd.DataLoader(
        torch.utils.data.TensorDataset(X[:20], Y[:20]), 4, shuffle=True, num_workers=2, collate_fn=list_of_tensors
    )


def list_of_tensors(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


@pytest.mark.parametrize("make_data", [Stateful, lambda: in_random_order, weighted, in_batches, rebuilt, with_workers])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_of_every_kind_go_on_at_the_same_sample(make_data: Any, tmp_path: Path) -> None:
    case = Case("data")  # five batches an epoch
    first = case.make(tmp_path / "a")
    first.fit(make_data(), epochs=3)
    for folder, step in (("b", 8), ("b", 9), ("b", 12)):
        with pytest.raises(Cut):
            case.make(tmp_path / folder, cut_at=step, resume="auto").fit(make_data(), epochs=3)
    second = case.make(tmp_path / "b", resume="auto")
    second.fit(make_data(), epochs=3)

    assert rows_without_times(second.result.history) == rows_without_times(first.result.history)
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))


def test_another_batch_size_goes_on_at_the_same_sample(tmp_path: Path) -> None:
    case = Case("other size")
    with pytest.raises(Cut):
        case.make(tmp_path / "run", cut_at=8).fit((X, Y), batch_size=4, epochs=2)  # 22 + 8 samples
    trainer = case.make(tmp_path / "run", resume="auto", accept_changes=True)
    result = trainer.fit((X, Y), batch_size=7, epochs=2)

    assert trainer.progress.samples_done == 44
    assert result.history[-1]["step"] == 8 + 2  # the 14 samples that are left, in two batches


class StopAt(vd.Callback):
    """Asks for the end of the run after a step of the first epoch."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == 4:
            trainer.stop()


@pytest.mark.parametrize("budget", [{"epochs": 3}, {"steps": 4}])
def test_a_run_cut_after_it_was_to_stop_only_brings_its_epoch_to_the_end(
    budget: dict[str, int], tmp_path: Path
) -> None:
    def run(folder: str, *callbacks: vd.Callback, resume: str = "never") -> vd.Trainer:
        trainer = Case("stop").make(tmp_path / folder, resume=resume)
        trainer._run.callbacks += [*([StopAt()] if "epochs" in budget else []), *callbacks]
        trainer.fit((X, Y), VAL, batch_size=4, **budget)
        return trainer

    straight = run("straight")
    with pytest.raises(Cut):
        run("run", CutAt(4))
    resumed = run("run", resume="auto")

    assert [row["step"] for row in straight.result.history] == [4]
    assert rows_without_times(resumed.result.history) == rows_without_times(straight.result.history)
    assert resumed.result.stop_reason is straight.result.stop_reason
    assert counters(resumed) == counters(straight)
    assert all(map(torch.equal, straight.model.state_dict().values(), resumed.model.state_dict().values()))


class Largest:
    """A metric object of the user's own; with state or without."""

    def __init__(self) -> None:
        self.reset()

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.value = max(self.value, float(output.max()))

    def compute(self) -> float:
        return self.value

    def reset(self) -> None:
        self.value = -1e9


class SavedLargest(Largest):
    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


def test_metric_objects_go_on_with_what_they_have_seen(tmp_path: Path) -> None:
    with suppress(ImportError):
        import_torchvision()  # torchmetrics imports it where it is installed, so it has to be one that imports
    from torchmetrics import classification

    metrics = {
        "f1": classification.MulticlassF1Score(num_classes=3),  # counts
        "auroc": classification.MulticlassAUROC(num_classes=3),  # lists of all outputs
        "largest": SavedLargest(),
    }
    case = Case("metrics", {"metrics": metrics})
    expected = outcome(case, case.make(tmp_path / "straight"))
    for step in (2, 5, 9):
        cut(case, tmp_path / str(step), step)
        assert different(expected, outcome(case, case.make(tmp_path / str(step), resume="auto"))) == []


def test_a_metric_object_without_state_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("metric", {"metrics": {"largest": Largest()}})
    cut(case, tmp_path / "run", 3)

    case.train(case.make(tmp_path / "run", resume="auto"))

    assert "largest of epoch 1 counts only what comes from here on" in capsys.readouterr().err


def test_state_of_a_callback_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("fewer")
    cut(case, tmp_path / "run", 3)
    trainer = case.make(tmp_path / "run", resume="auto")
    trainer._run.callbacks[:] = [each for each in trainer._run.callbacks if not isinstance(each, Tally)]

    case.train(trainer)

    assert "The checkpoint holds the state of Tally-0, which this trainer does not have" in capsys.readouterr().err


def test_the_rate_of_a_row_counts_only_samples_whose_time_was_measured(tmp_path: Path) -> None:
    class Slow(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            time.sleep(0.05)

    class SaveAt3(vd.Callback):  # between two log points; a save that the policy makes is one itself
        def on_step_end(self, trainer: vd.Trainer) -> None:
            if trainer.progress.steps_done == 3:
                trainer.save()
            if trainer.progress.steps_done == 4:
                raise Cut

    def make(**changes: Any) -> vd.Trainer:
        return vd.Trainer(
            make_model(), "sgd", lr=0.1, loss="cross_entropy", run_dir=tmp_path / "run", checkpoint=None, log_every="4 steps",
            loggers=["csv"], progress=False, device="cpu", **changes,
        )  # fmt: skip

    with pytest.raises(Cut):
        make(callbacks=[SaveAt3()]).fit((X, Y), batch_size=4, epochs=1)
    make(callbacks=[Slow()], resume="auto").fit((X, Y), batch_size=4, epochs=1)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    at_4 = next(row for row in rows if row["kind"] == "step" and row["step"] == 4)
    assert 0 < at_4["samples_per_s"] <= 4 / 0.05, "one step of 4 samples took at least 0.05 s in this process"
