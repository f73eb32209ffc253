"""What a user sees of `resume=`: what is gone on with, what is refused, and what is said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.errors import ArgumentError, CheckpointError, RefusedError
from velodrome.loop.progress import StopReason

if TYPE_CHECKING:
    from pathlib import Path

X, Y = torch.arange(40.0).reshape(10, 4) / 40, torch.arange(10) % 2
STEPS_AN_EPOCH = 5


def make(run_dir: Path | None, *, sizes: tuple[int, int] = (4, 2), **arguments: Any) -> vd.Trainer:
    torch.manual_seed(0)
    defaults = {
        "optimizer": "adam",
        "lr": 0.1,
        "loss": "cross_entropy",
        "seed": 1,
        "progress": False,
        "loggers": ["csv"],
    }
    return vd.Trainer(nn.Linear(*sizes), run_dir=run_dir, **{**defaults, **arguments})


def fit(
    trainer: vd.Trainer, *, epochs: int = 2, batch_size: int = 2, num_samples: int = 10, **arguments: Any
) -> vd.FitResult:
    return trainer.fit((X[:num_samples], Y[:num_samples]), batch_size=batch_size, epochs=epochs, **arguments)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what a run wrote, but for the lines that it said."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.txt"
    }


def test_never_refuses_a_folder_with_a_run(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))

    with pytest.raises(RefusedError, match="holds a run already"):
        make(tmp_path / "run", resume="never")


def test_auto_begins_where_there_is_no_run(tmp_path: Path) -> None:
    result = fit(make(tmp_path / "run", resume="auto"))

    assert [row["step"] for row in result.history] == [5, 10]


def test_auto_without_a_folder_is_refused() -> None:
    with pytest.raises(ArgumentError, match='Give run_dir="runs/mine"'):
        make(None, resume="auto")


def test_a_finished_run_does_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(tmp_path / "run")
    expected = fit(first)
    before = files_of(tmp_path / "run")

    again = make(tmp_path / "run", resume="auto", progress=True)
    result = fit(again)

    assert "is done already, after 10 steps: All epochs are done. Nothing was trained" in capsys.readouterr().err
    assert result.history == expected.history
    assert result.best == expected.best
    assert result.stop_reason is StopReason.EPOCHS
    assert again.progress == first.progress
    assert torch.equal(again.model.weight, first.model.weight)
    assert files_of(tmp_path / "run") == before


def test_a_finished_run_goes_on_when_there_is_a_larger_budget(tmp_path: Path) -> None:
    straight = make(tmp_path / "straight")
    fit(straight, epochs=4)
    fit(make(tmp_path / "run"), epochs=2)

    longer = make(tmp_path / "run", resume="auto")
    result = fit(longer, epochs=4)

    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    assert torch.equal(longer.model.weight, straight.model.weight)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["progress"]["steps_done"] == 20


def test_a_trainer_that_found_a_finished_run_can_go_on_later(tmp_path: Path) -> None:
    straight = make(tmp_path / "straight")
    fit(straight, epochs=3)
    fit(make(tmp_path / "run"))
    trainer = make(tmp_path / "run", resume="auto")
    fit(trainer)

    fit(trainer, epochs=3)

    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    assert torch.equal(trainer.model.weight, straight.model.weight)


def test_a_run_stopped_early_is_done_and_with_more_epochs_has_its_patience_again(tmp_path: Path) -> None:
    def stopping() -> list[vd.Callback]:
        return [vd.EarlyStopping("train/loss", patience=2, min_delta=100.0)]

    assert len(fit(make(tmp_path / "run", callbacks=stopping()), epochs=9).history) == 3
    again = fit(make(tmp_path / "run", resume="auto", callbacks=stopping()), epochs=9)
    assert (len(again.history), again.stop_reason) == (3, StopReason.EARLY)

    assert len(fit(make(tmp_path / "run", resume="auto", callbacks=stopping()), epochs=10).history) == 5


def test_a_run_directory_or_its_newest_checkpoint_may_be_named(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]

    assert len(fit(make(None, resume=tmp_path / "run"), epochs=3).history) == 3
    assert (newest / "manifest.json").exists()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert len(fit(make(tmp_path / "run", resume=newest), epochs=4).history) == 4


def test_an_older_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))
    older = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[0]

    with pytest.raises(RefusedError, match="is not the newest checkpoint of its run"):
        make(None, resume=older)


def test_a_path_without_a_run_and_two_runs_are_refused(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))

    with pytest.raises(ArgumentError, match="holds no run"):
        make(None, resume=tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match="are two runs"):
        make(tmp_path / "other", resume=tmp_path / "run")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "data", "complaint"),
    [
        ({"lr": 0.2}, {}, r"optimizers\.optimizer\.groups\.lr: 0\.1 -> 0\.2"),
        ({"seed": 2}, {}, r"seed: 1 -> 2"),
        ({"precision": "bf16"}, {}, r"precision: 'fp32' -> 'bf16'"),
        ({"accumulate": 2}, {}, r"optimizers\.optimizer\.accumulate: 1 -> 2"),
        ({"ema": 0.9}, {}, r"average: None -> 'ema'"),
        ({}, {"batch_size": 5}, r"data\.batch size: 2 -> 5"),
        ({}, {"num_samples": 8}, r"data\.samples: 10 -> 8"),
        ({}, {"shuffle": False}, r"data\.shuffle: True -> False"),
        ({"optimizer": "sgd"}, {}, "The optimizer was Adam and is SGD"),
        ({"scheduler": "cosine"}, {}, "The scheduler was none and is cosine"),
        ({"sizes": (4, 3)}, {}, r"weight was \(2, 4\) and is \(3, 4\)"),
        ({"freeze": ["bias"]}, {}, "The optimizer's parameters are not those of the checkpoint: missing now are bias"),
    ],
)
def test_what_differs_is_refused_and_nothing_is_changed(
    changes: dict[str, Any], data: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    fit(make(tmp_path / "run"))
    before = files_of(tmp_path / "run")
    trainer = make(tmp_path / "run", resume="auto", **changes)
    weights = [parameter.clone() for parameter in trainer.model.parameters()]

    with pytest.raises(RefusedError, match=complaint):
        fit(trainer, epochs=3, **data)

    assert all(map(torch.equal, weights, trainer.model.parameters()))
    assert files_of(tmp_path / "run") == before


def test_accepted_changes_hold_and_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make(tmp_path / "run"))
    trainer = make(tmp_path / "run", resume="auto", accept_changes=True, lr=0.25)

    result = fit(trainer, epochs=3, batch_size=5)

    assert (
        "Going on with other settings: optimizers.optimizer.groups.lr: 0.1 -> 0.25; data.batch size: 2 -> 5"
        in capsys.readouterr().err
    )
    assert [(row["lr"], row["step"]) for row in result.history] == [(0.1, 5), (0.1, 10), (0.25, 12)]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    fit(make(tmp_path / "run", log_every="1 steps", checkpoint=None), steps=3, epochs=None)
    for path in sorted((tmp_path / "run" / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()

    result = fit(make(tmp_path / "run", resume="auto"))

    assert [row["step"] for row in result.history] == [5, 10]
    kept = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kept == [5, 10]
    cut = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.cut.jsonl").read_text().splitlines()]
    assert cut == [1, 2, 3, 3]


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = make(tmp_path / "straight")
    fit(straight, epochs=3)
    fit(make(tmp_path / "run"), epochs=2)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(data)

    trainer = make(tmp_path / "run", resume="auto")
    result = fit(trainer, epochs=3)

    assert "A newer checkpoint is not used" in capsys.readouterr().err
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert torch.equal(trainer.model.weight, straight.model.weight)


def test_checkpoints_of_weights_only_are_not_gone_on_from(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        from velodrome.checkpoint.read import read_state, read_tensors
        from velodrome.checkpoint.store import CheckpointStore

        state = read_state(path)
        del state["resume"]
        run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
        CheckpointStore(path.parent, run_id=run_id).save(int(path.name[5:]), {"model": read_tensors(path)}, state)

    with pytest.raises(CheckpointError, match="holds weights only: an older release saved it"):
        make(tmp_path / "run", resume="auto")
    model = vd.load_model(tmp_path / "run", nn.Linear(4, 2), weights="last")
    assert model.weight.shape == (2, 4)


def test_a_run_json_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    fit(make(tmp_path / "run"))
    (tmp_path / "run" / "run.json").write_text("{")

    with pytest.raises(RefusedError, match=r"run\.json cannot be read"):
        make(tmp_path / "run", resume="auto")


def test_a_state_that_cannot_be_saved_leaves_weights_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(vd.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"where": {"of": object()}}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise NotImplementedError

    fit(make(tmp_path / "run", callbacks=[Odd()]))

    assert "callbacks/Odd-0/where/of is a object" in capsys.readouterr().err
    assert vd.load_model(tmp_path / "run", nn.Linear(4, 2), weights="last") is not None
    with pytest.raises(CheckpointError, match="callbacks/Odd-0/where/of"):
        make(tmp_path / "run", resume="auto")


def test_other_optimizers_are_refused(tmp_path: Path) -> None:
    def make_several(*names: str) -> vd.Trainer:
        model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        return vd.Trainer(
            model,
            dict.fromkeys(names, "adam"),
            run_dir=tmp_path / "run",
            resume="auto",
            progress=False,
            loggers=[],
            device="cpu",
        )

    trainer = make_several("body", "head")
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, Y), batch_size=5):
            hidden = trainer.model["body"](x)
            trainer.step(hidden.square().mean(), optimizer="body")
            trainer.step(nn.functional.cross_entropy(trainer.model["head"](hidden.detach()), y), optimizer="head")

    with pytest.raises(RefusedError, match=r"had the optimizers \['body', 'head'\], and this trainer has \['head'\]"):
        list(make_several("head").epochs(2))
