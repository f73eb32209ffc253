"""Every switch together with every other: each pair of settings trains, evaluates, saves and loads in some row of a table."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from support.pairwise import covering_rows, missing_pairs, name_of
from velodrome.averages import EMA, SWA

FACTORS: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "bf16", "fp16"),
    "accumulate": (1, 3),
    "clip": (None, "norm", "value"),
    "schedule": (None, "cosine", "plateau", "steplr"),
    "average": (None, "ema", "swa"),
    "compile": (False, True),
    "processes": (1, 2),
    "custom_step": (False, True),
    "iterable": (False, True),
    "on_oom": ("stop", "split"),
    "recompute": (False, True),
}
BATCH, SAMPLES, EPOCHS = 6, 46, 3  # 8 batches, the last of 4: windows of three are 3, 3 and a short 2


ROWS = covering_rows(FACTORS)


class Restarting:
    """Batches of unknown number, from the start in every epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))

    def forward(self, x):
        return self.layers(x)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(SAMPLES) % 3
    return torch.randn(SAMPLES, 4, generator=generator) + y[:, None], y


def for_half_a_batch(output, target):
    """Cross entropy for which memory runs out in training, with more than half a batch: outside of the model, which may be compiled."""
    if torch.is_grad_enabled() and len(output) > BATCH // 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Planted.")
    return F.cross_entropy(output, target)


def custom_step(model, batch, loss=F.cross_entropy):
    x, y = batch
    output = model(x)
    return {"loss": loss(output, y), "output": output, "target": y, "items": torch.tensor(len(y))}


def run_row(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train one row; everything that it switched on must have left its trace."""
    torch.manual_seed(0)
    x, y = data()
    model = Net()
    schedule = {
        None: {},
        "cosine": {"scheduler": "cosine", "scheduler_args": {"warmup": 2}},
        "plateau": {"scheduler": "plateau", "scheduler_args": {"patience": 0, "threshold": 10.0, "factor": 0.5}},
        "steplr": {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)},
    }[row["schedule"]]
    average = {None: None, "ema": EMA(0.9), "swa": SWA(start="1 epoch")}[row["average"]]
    rates: list[float] = []
    loss = for_half_a_batch if row["on_oom"] == "split" else F.cross_entropy

    class Rates(vd.Callback):
        def on_step_end(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer = vd.Trainer(
        model,
        "sgd",
        lr=0.1,
        optimizer_args={"momentum": 0.9},
        loss=None if row["custom_step"] else loss,
        step_fn=partial(custom_step, loss=loss) if row["custom_step"] else None,
        metrics=["accuracy"],
        precision=row["precision"],
        scaler_args={"init_scale": 64.0} if row["precision"] == "fp16" else None,
        accumulate=row["accumulate"],
        on_oom=row["on_oom"],
        clip_norm=0.5 if row["clip"] == "norm" else None,
        clip_value=0.05 if row["clip"] == "value" else None,
        ema=average,
        compile={"backend": "aot_eager" if row["recompute"] else "eager"} if row["compile"] else False,
        gradient_checkpointing=["layers"] if row["recompute"] else [],
        callbacks=[Rates()],
        device="cpu",
        seed=1,
        run_dir=f"{folder}/run",
        progress=False,
        **schedule,
    )
    updates = EPOCHS * math.ceil(math.ceil(SAMPLES / BATCH) / row["accumulate"])
    if row["iterable"]:
        batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        # Two processes share the eight batches, four each: a window of three is filled twice an epoch either way.
        if row["processes"] == 2:
            updates = EPOCHS * math.ceil(4 / row["accumulate"])
        result = trainer.fit(Restarting(batches), Restarting(batches), epochs=EPOCHS, steps=updates)
    else:
        result = trainer.fit((x, y), (x, y), epochs=EPOCHS, batch_size=BATCH, eval_batch_size=20)
    last = result.metrics
    assert trainer.progress.steps_done == updates, (trainer.progress, updates)
    assert len(result.history) == EPOCHS
    assert all(math.isfinite(value) for key, value in last.items() if isinstance(value, float))
    assert last["val/loss"] < result.history[0]["train/loss"]
    assert ("skipped_steps" in last) == (row["precision"] == "fp16")
    assert ("train/grad_norm" in last) == (row["clip"] is not None)
    assert (len({round(rate, 9) for rate in rates}) > 1) == (row["schedule"] is not None), rates
    assert ("forward" in vars(model.layers)) == row["recompute"]
    if row["processes"] == 1:  # two have half a batch each
        assert trainer._run.part_sizes == ({"train": BATCH // 2} if row["on_oom"] == "split" else {})
    if row["compile"]:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    seen = {"val/loss": last["val/loss"], "val/accuracy": last["val/accuracy"], "steps": trainer.progress.steps_done}
    if result.run_dir is None:  # not the process that writes
        return seen
    parts = {path.name for path in (result.run_dir / "checkpoints").glob(f"step-{updates:08d}/*.safetensors")}
    assert parts >= ({"model.safetensors", "ema.safetensors"} if average else {"model.safetensors"})
    assert ("ema.safetensors" in parts) == (average is not None)
    loaded = vd.load_model(result.run_dir / "checkpoints", model=Net())
    twin = vd.Trainer(loaded, None, loss="cross_entropy", metrics=["accuracy"], precision=row["precision"], device="cpu", progress=False)  # fmt: skip
    if row["processes"] == 1:
        again = twin.evaluate((x, y), batch_size=20 if not row["iterable"] else BATCH)
        best = result.best  # what `load_model` loads
        assert again["accuracy"] == pytest.approx(best["val/accuracy"])
        assert again["loss"] == pytest.approx(best["val/loss"], rel=1e-5)
    return seen


def run_rows(rows: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Run rows one after the other in the processes of a group; return what each saw."""
    return [run_row(row, f"{folder}/{index}") for index, row in enumerate(rows)]


def test_the_table_has_every_pair_and_few_rows():
    assert missing_pairs(FACTORS, ROWS) == []
    assert missing_pairs(FACTORS, ROWS[:-1]) != []  # the control
    assert len(ROWS) <= 24


@pytest.mark.parametrize("row", [row for row in ROWS if row["processes"] == 1], ids=name_of)
def test_one_process(row, tmp_path):
    run_row(row, str(tmp_path))


def test_two_processes(two, tmp_path):
    rows = [row for row in ROWS if row["processes"] == 2]
    by_rank = two.run(run_rows, rows, str(tmp_path), timeout_s=240)
    for row, first, second in zip(rows, *by_rank, strict=True):
        assert first == second, name_of(row)
