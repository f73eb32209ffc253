"""Averages of weights in a run: which weights are evaluated, saved and trained on, with numbers that can be worked out by hand."""

import json
import random

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import velodrome as vd
from velodrome.averages import EMA, SWA
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.errors import ArgumentError, NumericsError

X, Y = torch.ones(8, 1), torch.zeros(8, 1)
SAMPLES, LABELS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def falling(value=8.0, **arguments):
    """The loss is the weight: with lr=1 each update takes 1 off, so after n updates it is 8 - n."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    arguments = {"step_fn": lambda model, batch: model(batch[0]).mean(), "progress": False, "loggers": (), **arguments}
    return vd.Trainer(model, "sgd", lr=1.0, device="cpu", **arguments)


def classifier(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    arguments = {"loss": "cross_entropy", "progress": False, "loggers": (), "device": "cpu", "seed": 0, **arguments}
    return vd.Trainer(model, "sgd", lr=0.1, **arguments)


def checkpoint(tmp_path, step):
    return tmp_path / "run" / "checkpoints" / f"step-{step:08d}"


def test_evaluations_of_a_run_use_the_average_and_training_does_not():
    # Weights 7, 6, 5, 4 after the updates; the average 7, 6.5, 5.75, 4.875.
    trainer = falling(ema=EMA(0.5))
    result = trainer.fit((X, Y), (X, Y), batch_size=4, epochs=2)
    assert [row["val/loss"] for row in result.history] == [6.5, 4.875]
    assert [row["train/loss"] for row in result.history] == [7.5, 5.5]  # (8 + 7) / 2, (6 + 5) / 2
    assert trainer.model.weight.item() == 4
    assert trainer.evaluate((X, Y))["loss"] == 4.875
    assert trainer.predict(X)[0].item() == 4.875
    with trainer.averaging.applied():
        assert trainer.model.weight.item() == 4.875
    assert trainer.model.weight.item() == 4


def test_explicit_loop_evaluates_the_average_too():
    trainer = falling(callbacks=[EMA(0.5)])
    for epoch in trainer.epochs(2):
        for x, _ in epoch.train((X, Y), batch_size=4):
            trainer.step(trainer.model(x).mean())
        for x, _ in epoch.evaluate((X, Y), batch_size=4):
            trainer.log(loss=trainer.model(x).mean())
    assert [row["val/loss"] for row in trainer.result.history] == [6.5, 4.875]


def test_evaluate_raw_keeps_the_average_for_the_files(tmp_path):
    trainer = falling(ema=EMA(0.5, evaluate="raw"), run_dir=tmp_path / "run")
    result = trainer.fit((X, Y), (X, Y), batch_size=4, epochs=2)
    assert [row["val/loss"] for row in result.history] == [6, 4]
    assert load_file(checkpoint(tmp_path, 4) / "ema.safetensors")["weight"].item() == 4.875
    assert read_state(checkpoint(tmp_path, 4))["evaluated_weights"] == "raw"


def test_checkpoints_hold_both_and_say_which_was_evaluated(tmp_path):
    falling(ema=0.5, run_dir=tmp_path / "run").fit((X, Y), (X, Y), batch_size=4, epochs=2)
    assert load_file(checkpoint(tmp_path, 2) / "model.safetensors")["weight"].item() == 6
    assert load_file(checkpoint(tmp_path, 2) / "ema.safetensors")["weight"].item() == 6.5
    state = read_state(checkpoint(tmp_path, 2))
    assert state["evaluated_weights"] == "averaged"
    assert state["averaging"] == {"kind": "ema", "num_averaged": 2, "num_updates": 2}


@pytest.mark.parametrize(("said", "weight"), [("averaged", 4.875), ("raw", 4.0), (None, 4.0)])
def test_load_model_takes_the_weights_that_were_evaluated_because_the_checkpoint_says_which(tmp_path, said, weight):
    falling(ema=0.5, run_dir=tmp_path / "run").fit((X, Y), (X, Y), batch_size=4, epochs=2)
    path = checkpoint(tmp_path, 4)
    state = read_state(path)
    assert state.pop("evaluated_weights") == "averaged"
    groups = {each.stem: read_tensors(path, each.stem) for each in path.glob("*.safetensors")}
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    CheckpointStore(tmp_path / "run" / "checkpoints", run_id=run_id).save(
        4, groups, state if said is None else {**state, "evaluated_weights": said}
    )

    model = vd.load_model(tmp_path / "run", nn.Linear(1, 1, bias=False), weights="last")
    assert model.weight.item() == weight


def test_save_in_the_middle_of_an_evaluation_saves_the_raw_weights_as_the_model(tmp_path):
    trainer = falling(ema=EMA(0.5), run_dir=tmp_path / "run", checkpoint=None)
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4):
            trainer.step(trainer.model(x).mean())
        for x, _ in epoch.evaluate((X, Y), batch_size=8):
            trainer.log(loss=trainer.model(x).mean())
            trainer.save()
    assert load_file(checkpoint(tmp_path, 2) / "model.safetensors")["weight"].item() == 6
    assert load_file(checkpoint(tmp_path, 2) / "ema.safetensors")["weight"].item() == 6.5


def test_best_row_is_the_one_of_the_averaged_metric():
    # |weight - 2.4| of the raw weights 4, 2, 0, -2 is smallest in epoch 2; that of the averages 4.5, 2.875, 1.09375, -0.82 there
    # too, but of |weight - 1| it is epoch 3 for the averages, and a tie of 2 and 3 for the raw ones, which 2 wins.
    def distance(model, batch):
        output = model(batch[0])
        return {"loss": output.mean() if model.training else (output - 1).abs().mean()}

    best = {
        evaluate: falling(6.0, step_fn=distance, ema=EMA(0.5, evaluate=evaluate)).fit((X, Y), (X, Y), batch_size=4, epochs=4).best
        for evaluate in ("averaged", "raw")
    }  # fmt: skip
    assert best["averaged"]["epoch"] == 3
    assert best["raw"]["epoch"] == 2


def test_accumulation_windows_are_averaged_once_an_update():
    # Two micro-batches an update: one update an epoch, the weight 7, then 6; the average 7, then 6.5.
    result = falling(ema=EMA(0.5), accumulate=2).fit((X, Y), (X, Y), batch_size=4, epochs=2)
    assert [row["val/loss"] for row in result.history] == [7, 6.5]


def test_swa_averages_the_ends_of_the_last_epochs(tmp_path):
    # At the ends of the epochs 6, 4, 2, 0; from the third on: 2, then (2 + 0) / 2 = 1.
    result = falling(ema=SWA(start="50%"), run_dir=tmp_path / "run").fit((X, Y), (X, Y), batch_size=4, epochs=4)
    assert [row["val/loss"] for row in result.history] == [6, 4, 2, 1]
    assert not (checkpoint(tmp_path, 4) / "ema.safetensors").exists()
    assert load_file(checkpoint(tmp_path, 8) / "ema.safetensors")["weight"].item() == 1


def test_swa_without_validation_data():
    trainer = falling(ema=SWA(start=2))
    trainer.fit((X, Y), batch_size=4, epochs=4)
    assert trainer.evaluate((X, Y))["loss"] == 1


@pytest.mark.parametrize("average", [EMA(0.9), SWA(start=0)], ids=["ema", "swa"])
def test_training_gives_the_same_bits_with_an_average_as_without(average):
    """SWA passes the training data, dropout included, through the model each epoch: the run does not notice."""
    alone, averaged = classifier(), classifier(ema=average)
    for trainer in (alone, averaged):
        trainer.fit((SAMPLES, LABELS), (SAMPLES, LABELS), batch_size=8, epochs=3)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, averaged.model.state_dict()[name]), name
    assert alone.result.metrics["train/loss"] == averaged.result.metrics["train/loss"]
    assert alone.result.metrics["val/loss"] != averaged.result.metrics["val/loss"]  # negative control


def test_swa_leaves_every_generator_as_it_was():
    drawn = []
    for average in (None, SWA(start=0)):
        classifier(ema=average).fit((SAMPLES, LABELS), batch_size=8, epochs=2)
        drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def swa_statistics(train, **arguments):
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    trainer = vd.Trainer(model, "sgd", lr=0.0, ema=SWA(start=0), device="cpu", progress=False, **arguments)
    return trainer, lambda: trainer.averaging.state_dict()


def test_swa_recomputes_batch_norm_statistics_over_the_training_data():
    x = torch.tensor([[0.0], [2.0], [4.0], [8.0]])
    trainer, state = swa_statistics(x, loss="mse")
    trainer.fit((x, torch.zeros(4, 1)), batch_size=2, epochs=1, shuffle=False)
    assert state()["0.running_mean"].item() == 3.5  # (1 + 6) / 2
    assert state()["0.running_var"].item() == 5.0  # (2 + 8) / 2
    # 0.1 * 6 + 0.9 * (0.1 * 1 + 0.9 * 0) = 0.69: the moving mean of the raw model
    assert trainer.model[0].running_mean.item() == pytest.approx(0.69)


def test_swa_recomputes_statistics_in_a_loop_that_computes_its_loss_itself():
    x = torch.tensor([[0.0], [2.0], [4.0], [8.0]])
    trainer, state = swa_statistics(x)
    for epoch in trainer.epochs(1):
        for x_batch, y in epoch.train((x, torch.zeros(4, 1)), batch_size=2, shuffle=False):
            trainer.step(F.mse_loss(trainer.model(x_batch), y))
    assert state()["0.running_mean"].item() == 3.5


def test_swa_on_data_that_can_be_read_only_once_keeps_the_statistics_and_says_so(capsys):
    x = torch.tensor([[0.0], [2.0]])
    trainer, state = swa_statistics(x, loss="mse")
    trainer.fit(iter([(x, x)]), epochs=1)
    assert "can be read only once, so the BatchNorm statistics" in capsys.readouterr().err
    assert state()["0.running_mean"].item() == pytest.approx(0.1)  # 0.1 * 1


def test_ema_with_batch_norm_evaluates_sensibly():
    """Statistics averaged like the weights: the evaluation is near that of the raw model, not of a fresh one."""
    trainer = classifier(ema=EMA(0.8))
    trainer.fit((SAMPLES, LABELS), (SAMPLES, LABELS), batch_size=8, epochs=10)
    averaged = trainer.evaluate((SAMPLES, LABELS))["loss"]
    raw = vd.evaluate(trainer.model, (SAMPLES, LABELS), loss="cross_entropy", device="cpu")["loss"]
    assert averaged == pytest.approx(raw, rel=0.05)


def test_negative_control_averaged_weights_with_fresh_statistics_are_not_sensible():
    x = SAMPLES + 100
    trainer = classifier(ema=EMA(0.8))
    trainer.fit((x, LABELS), (x, LABELS), batch_size=8, epochs=10)
    good = trainer.evaluate((x, LABELS))["loss"]
    with trainer.averaging.applied():
        trainer.model[1].reset_running_stats()
    assert trainer.evaluate((x, LABELS))["loss"] > 2 * good


def test_average_that_is_not_finite_is_never_saved(tmp_path):
    trainer = falling(ema=EMA(0.5), run_dir=tmp_path / "run", checkpoint=None)
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4):
            trainer.step(trainer.model(x).mean())
        with trainer.averaging.applied():
            trainer.model.weight.data.fill_(torch.nan)
        with pytest.raises(NumericsError, match="averaged weight 'weight' is not finite after step 2"):
            trainer.save()
        with trainer.averaging.applied():
            trainer.model.weight.data.fill_(0.0)
    assert load_file(checkpoint(tmp_path, 2) / "model.safetensors")["weight"].item() == 6


def test_run_that_ends_before_the_average_begins_says_so(capsys):
    falling(ema=EMA(start=100)).fit((X, Y), batch_size=4, epochs=1)
    assert "ended before its weights were averaged once" in capsys.readouterr().err


def test_overflow_in_fp16_is_no_update_of_the_average():
    # The gradient is the scale times 4 * 2 * 1 / 4 = 2, and fp16 ends at 65504: of the scales 2**16, 2**15 and 2**14 the first
    # two are too large, so the updates 1 and 2 are skipped, 3 and 4 made.
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    trainer = vd.Trainer(
        model, "sgd", lr=0.0, loss="mse", precision="fp16", scaler_args={"init_scale": 2.0**16}, ema=EMA(0.5), device="cpu",
        progress=False,
    )  # fmt: skip
    result = trainer.fit((X, Y), batch_size=4, epochs=2)
    assert result.metrics["skipped_steps"] == 2
    assert trainer.averaging.num_averaged == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ema": EMA(0.5), "callbacks": [SWA()]}, "2 averages of the weights were given"),
        ({"ema": 1.5}, "decay=1.5 is no decay"),
        ({"ema": True}, "ema=True is no average"),
    ],
)
def test_wrong_averages_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        falling(run_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_average_of_a_trainer_that_does_not_train_is_refused():
    with pytest.raises(ArgumentError, match=r"optimizer=None, which never changes them"):
        vd.Trainer(nn.Linear(1, 1), optimizer=None, ema=0.9)


def test_average_of_weights_that_the_optimizer_averages_itself_is_refused():
    class ScheduleFree(torch.optim.SGD):
        def train(self):
            pass

        def eval(self):
            pass

    model = nn.Linear(1, 1)
    with pytest.raises(ArgumentError, match="ScheduleFree shows other weights in evaluation.*Leave ema out"):
        vd.Trainer(model, ScheduleFree(model.parameters(), lr=0.1), ema=0.9)


def test_average_that_begins_after_the_run_is_refused():
    with pytest.raises(ArgumentError, match="begins after 5 epochs, when this run of 2 epochs is over"):
        falling(ema=SWA(start=5)).fit((X, Y), batch_size=4, epochs=2)


def test_several_optimizers_count_the_updates_of_the_first():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    trainer = vd.Trainer(model, {"a": "sgd", "b": "sgd"}, lr=0.1, ema=EMA(0.5), device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4):
            for name in ("a", "b"):
                trainer.step(model[name](x).mean(), optimizer=name)
    assert trainer.averaging.num_averaged == 2
