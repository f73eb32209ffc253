"""Laws 1 and 3 under every engine: eager, compiled, and captured with recorders for the CPU.

`Replayer` runs what was recorded again, Python and all; `TapeReplayer` only its operations, on the memory that they had, so that a
number that was frozen and memory that has gone stale show.
"""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.testing.replayer import Replayer
from velodrome.testing.tape import TapeReplayer

if TYPE_CHECKING:
    from pathlib import Path

SEED, BATCH, EPOCHS = 7, 4, 2
X = torch.randn(26, 6, generator=torch.Generator().manual_seed(0))  # 6 batches of 4 and one of 2 an epoch: 14 steps
Y = torch.randint(0, 3, (26,), generator=torch.Generator().manual_seed(1))
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "adam": {},
    "adamw": {"weight_decay": 0.1},
}


def make_model(drop: float = 0.3) -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(drop), nn.Linear(8, 3))


def train(
    engine: Any,
    optimizer: str = "adam",
    epochs: int = EPOCHS,
    drop: float = 0.3,
    model: nn.Module | None = None,
    **arguments: Any,
) -> vd.Trainer:
    more = {"lr": 0.02, "optimizer_args": OPTIMIZERS[optimizer], "seed": SEED, **arguments}
    trainer = vd.Trainer(
        make_model(drop) if model is None else model,
        optimizer,
        loss="cross_entropy",
        metrics=["accuracy"],
        device="cpu",
        progress=False,
        engine=engine,
        **more,
    )
    trainer.fit((X, Y), batch_size=BATCH, epochs=epochs)
    return trainer


def plain_loop(optimizer: str, lr: float | torch.Tensor, drop: float = 0.3) -> nn.Module:
    """Train as the PyTorch tutorial does, with torch's fused optimizer."""
    model = make_model(drop)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    own = kind(model.parameters(), lr=lr, fused=True, **OPTIMIZERS[optimizer])
    loader = vd.DataLoader((X, Y), BATCH, shuffle=True, seed=SEED)
    torch.manual_seed(SEED)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        model.train()
        for x, y in loader:
            own.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            own.step()
    return model


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- law 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_the_eager_engine_gives_the_bits_of_the_plain_loop(engine: str, optimizer: str) -> None:
    assert same_bits(train(engine, optimizer).model, plain_loop(optimizer, lr=0.02))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_recorder", [Replayer, TapeReplayer])
def test_recorded_steps_give_the_bits_of_the_plain_loop_with_its_learning_rate_in_a_tensor(
    make_recorder: Any, optimizer: str
) -> None:
    """float32, as a device has it: 0.02 is another number there, by one part in 20 million."""
    recorder = make_recorder()
    trainer = train(recorder, optimizer)
    assert (
        recorder.num_replayed == 3 + 14 - 3 - 2
    )  # 3 before they are trusted; 3 steps of warm-up and 2 odd last ones are eager
    assert same_bits(trainer.model, plain_loop(optimizer, lr=torch.tensor(0.02)))


class Convolutions(nn.Module):
    """A little of everything that a step can hold, but no BatchNorm: it makes of rounding what Adam makes steps of."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(24, 3)
        self.norm, self.drop = nn.GroupNorm(2, 4), nn.Dropout(0.2)
        self.drift = drift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            CALLS[0] += 1
        h = functional.max_pool2d(self.norm(self.first(x.view(-1, 1, 2, 3))).relu(), 1)
        return self.last(self.drop(h).flatten(1)) * (1 + self.drift * CALLS[0])


CALLS = [0]
"""Where no engine looks: a variable of a module. What it makes of it in a model changes from step to step."""
SWITCHES: dict[str, dict[str, Any]] = {
    "none": {},
    "schedule": {"scheduler": "cosine", "scheduler_args": {"warmup": 3}},
    "clipping": {"clip_norm": 0.1, "grad_norms": True},
    "bf16": {"precision": "bf16"},
    "average": {"ema": 0.9},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_tape_gives_the_bits_and_the_rows_of_python_that_runs_again(switch: str) -> None:
    """Nothing that a step needs is decided in Python: rates, masks, norms and guards all come from the device."""
    ends = []
    for recorder in (Replayer(), TapeReplayer()):
        trainer = train(recorder, model=Convolutions(), **SWITCHES[switch])
        assert recorder.num_replayed == 3 + 14 - 3 - 2
        ends.append(trainer)
    assert same_bits(ends[0].model, ends[1].model)
    rows = [[row[name] for row in each.result.history for name in ("train/loss", "train/accuracy")] for each in ends]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("drift", "is_found"), [(1e-5, False), (0.1, True)])
def test_negative_control_a_number_that_changes_from_step_to_step_shows_on_a_tape(
    capsys: pytest.CaptureFixture[str], drift: float, is_found: bool
) -> None:
    """Python that runs again hides it. A drift that changes little is frozen; one that changes much is found by the comparison."""
    ends = []
    for engine in ("eager", Replayer(), TapeReplayer()):
        CALLS[0] = 0
        ends.append(train(engine, model=Convolutions(drift), optimizer="sgd"))
    shown = "".join(capsys.readouterr())
    assert ("3 steps made both ways do not agree" in shown) is is_found
    if not is_found:
        assert not same_bits(ends[1].model, ends[2].model)


def test_negative_control_another_learning_rate_gives_other_bits() -> None:
    assert not same_bits(train(Replayer()).model, plain_loop("adam", lr=torch.tensor(0.020001)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="inductor needs a compiler")
def test_the_compiled_engine_ends_near_the_plain_loop() -> None:
    torch.compiler.reset()
    # Without dropout: what torch.compile writes draws other masks.
    compiled, plain = train("compiled", drop=0.0).model, plain_loop("adam", lr=0.02, drop=0.0)
    for (name, a), b in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        if name != "0.bias":  # before BatchNorm its gradient is rounding alone, which Adam makes steps of
            assert torch.allclose(a, b, atol=1e-4), name


# -- law 3 -----------------------------------------------------------------------------------------------------------


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done >= self.step:
            raise Cut


def run(engine: Any, folder: Path, *, cut_at: int | None = None, resume: str = "never", **arguments: Any) -> vd.Trainer:
    callbacks = [] if cut_at is None else [CutAt(cut_at)]
    more = {
        "checkpoint": "every step",
        "log_every": "4 steps",
        "loggers": (),
        "ema": 0.9,
        "scheduler": "cosine",
        **arguments,
    }
    return train(engine, run_dir=folder, resume=resume, callbacks=callbacks, **more)


def kept(trainer: vd.Trainer) -> dict[str, torch.Tensor]:
    found = dict(trainer.model.state_dict())
    found |= {f"ema {name}": value for name, value in trainer.averaging.state_dict().items()}
    for index, state in enumerate(trainer.optimizer.state.values()):
        found |= {f"{index} {name}": value for name, value in state.items()}
    return found


ENGINES = {"eager": lambda: "eager", "captured": Replayer, "on a tape": TapeReplayer}


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7, 10])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_cut_between_steps_ends_like_the_one_that_was_not(tmp_path: Path, engine: str, step: int) -> None:
    straight = run(ENGINES[engine](), tmp_path / "straight")
    with suppress(Cut):
        run(ENGINES[engine](), tmp_path / "cut", cut_at=step)
    resumed = run(ENGINES[engine](), tmp_path / "cut", resume="auto")

    one, other = kept(straight), kept(resumed)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    ignored = ("seconds", "samples_per_s")
    rows = [
        [{k: v for k, v in row.items() if k not in ignored} for row in each.result.history]
        for each in (straight, resumed)
    ]
    assert rows[0] == rows[1]


def without(folder: Path, step: int, item: str) -> None:
    """Take a piece of what was saved out of a checkpoint; its hashes are true."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    held = {each.stem: read_tensors(path, each.stem) for each in path.glob("*.safetensors")}
    state = read_state(path)
    if item == "random":
        other = torch.Generator().manual_seed(99).get_state()
        held["rng-rank0"] = {
            name: other if value.shape == other.shape else value for name, value in held["rng-rank0"].items()
        }
    else:
        zeros = {name: torch.zeros_like(value) for name, value in held["optimizer"].items() if item in name}
        assert zeros, list(held["optimizer"])
        held["optimizer"] |= zeros
    run_id = json.loads((folder / "run.json").read_text())["id"]
    CheckpointStore(folder / "checkpoints", run_id=run_id).save(step, held, state)


@pytest.mark.parametrize("item", ["exp_avg", "step", "random"])
def test_negative_control_without_a_piece_of_what_was_saved_it_ends_elsewhere(tmp_path: Path, item: str) -> None:
    straight = run(Replayer(), tmp_path / "straight")
    with suppress(Cut):
        run(Replayer(), tmp_path / "cut", cut_at=6)
    without(tmp_path / "cut", 6, item)
    resumed = run(Replayer(), tmp_path / "cut", resume="auto")
    assert not same_bits(straight.model, resumed.model)


class DrawsInPython(nn.Module):
    """Draws from generators that a replay leaves alone, and counts: it runs eagerly, and must not draw once more when it goes on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.layer(x) * (1 + random.random() * numpy.random.rand()) / (1 + self.calls % 2)


@pytest.mark.parametrize("step", [3, 6])
def test_a_model_that_draws_in_python_goes_on_like_the_run_that_was_not_cut(tmp_path: Path, step: int) -> None:
    def end(folder: Path, **arguments: Any) -> vd.Trainer:
        model = DrawsInPython()
        if "resume" in arguments:
            model.calls = step  # an attribute is the user's to keep
        return run(Replayer(), folder, model=model, **arguments)

    straight = end(tmp_path / "straight")
    with suppress(Cut):
        end(tmp_path / "cut", cut_at=step)
    resumed = end(tmp_path / "cut", resume="auto")
    assert same_bits(straight.model, resumed.model)


@pytest.mark.parametrize(("first", "second"), [("captured", "eager"), ("eager", "captured")])
def test_a_run_goes_on_with_another_engine(tmp_path: Path, first: str, second: str) -> None:
    straight = run(ENGINES[first](), tmp_path / "straight")
    with suppress(Cut):
        run(ENGINES[first](), tmp_path / "cut", cut_at=6)
    resumed = run(ENGINES[second](), tmp_path / "cut", resume="auto")
    for (name, a), b in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        if name != "0.bias":  # as above
            assert torch.allclose(a, b, atol=1e-4), name
