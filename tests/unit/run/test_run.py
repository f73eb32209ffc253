"""How runs begin, nest and end, and what they leave behind."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import velodrome as vd
from velodrome.errors import ArgumentError, DataError, NumericsError

X, Y = torch.eye(8), torch.arange(8) % 2


class Teller(vd.Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_fit_start(self, trainer):
        self.told.append("start")

    def on_checkpoint(self, trainer, path):
        self.told.append(path.name)

    def on_exception(self, trainer, error):
        self.told.append(type(error).__name__)

    def on_fit_end(self, trainer):
        self.told.append("end")


def make(tmp_path=None, **arguments):
    torch.manual_seed(0)
    arguments = {"loss": "cross_entropy", "lr": 0.1, "progress": False, "device": "cpu", "loggers": (), **arguments}
    run_dir = None if tmp_path is None else tmp_path / "run"
    return vd.Trainer(nn.Linear(8, 2), "sgd", run_dir=run_dir, **arguments)


def record(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())


def train_once(trainer, epoch):
    for x, y in epoch.train((X, Y), batch_size=4):
        trainer.step(F.cross_entropy(trainer.model(x), y))


def test_a_file_of_the_user_survives_a_refused_run(tmp_path):
    trainer = make(tmp_path)
    notes = tmp_path / "run" / "my_notes.txt"
    notes.write_text("keep me")
    with pytest.raises(DataError, match="out of range"):
        trainer.fit((X, Y + 5), batch_size=4, epochs=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["my_notes.txt"]


def test_a_refused_second_call_leaves_a_finished_run_done(tmp_path):
    trainer = make(tmp_path)
    trainer.fit((X, Y), batch_size=4, epochs=1)
    with pytest.raises(ArgumentError, match="epochs=0"):
        trainer.fit((X, Y), epochs=0)
    assert record(tmp_path)["status"] == "done"
    assert trainer.result.stop_reason is vd.StopReason.EPOCHS


def test_a_callback_that_fails_at_the_start_is_recorded_and_the_trainer_can_go_on(tmp_path):
    class FailsOnce(Teller):
        def on_fit_start(self, trainer):
            super().on_fit_start(trainer)
            if self.told == ["start"]:
                raise RuntimeError("no licence")

    teller = FailsOnce()
    trainer = make(tmp_path, callbacks=[teller])
    with pytest.raises(RuntimeError, match="no licence"):
        trainer.fit((X, Y), batch_size=4, epochs=1)
    assert teller.told == ["start", "RuntimeError", "end"]
    assert record(tmp_path)["status"] == "failed"
    assert trainer.fit((X, Y), batch_size=4, epochs=1).stop_reason is vd.StopReason.EPOCHS


def test_zipped_evaluations_are_refused_and_leave_no_mode_behind():
    trainer = make()
    with pytest.raises(ArgumentError, match="'b' was started inside of the evaluation 'a'"):
        for epoch in trainer.epochs(1):
            loops = [epoch.evaluate((X, Y), batch_size=4, name=name) for name in ("a", "b")]
            for _ in zip(*loops, strict=True):
                pass
    del loops
    assert not torch.is_inference_mode_enabled()
    assert trainer.model.training


def test_training_that_goes_on_inside_of_an_open_evaluation_is_refused():
    trainer = make()
    with pytest.raises(ArgumentError, match="'train' loop went on while the 'val' loop"):
        for epoch in trainer.epochs(1):
            loops = [epoch.train((X, Y), batch_size=4), epoch.evaluate((X, Y), batch_size=4)]
            for (x, y), _ in zip(*loops, strict=True):
                with torch.inference_mode(False):
                    F.cross_entropy(trainer.model(x), y)
    del loops
    assert not torch.is_inference_mode_enabled()


def test_our_error_in_a_loop_of_ones_own_is_recorded_as_failed(tmp_path):
    teller = Teller()
    trainer = make(tmp_path, callbacks=[teller], log_every="1 step")
    with pytest.raises(NumericsError, match="nan"):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train((X, Y), batch_size=4):
                trainer.step(F.cross_entropy(trainer.model(x), y) * torch.nan)
    assert teller.told == ["start", "NumericsError", "end"]
    assert record(tmp_path)["status"] == "failed"
    assert "NumericsError" in record(tmp_path)["error"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_interrupt_in_a_loop_of_ones_own_is_recorded_as_such(tmp_path):
    class Interrupt(vd.Callback):
        def on_step_end(self, trainer):
            raise KeyboardInterrupt

    trainer = make(tmp_path, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        for epoch in trainer.epochs(1):
            train_once(trainer, epoch)
    assert trainer.result.stop_reason is vd.StopReason.INTERRUPTED
    assert record(tmp_path)["status"] == "stopped"


def test_leaving_by_break_saves_the_last_weights_and_tells_the_end(tmp_path):
    teller = Teller()
    trainer = make(tmp_path, callbacks=[teller])
    for epoch in trainer.epochs(5):
        train_once(trainer, epoch)
        break
    assert teller.told == ["start", "step-00000002", "end"]
    assert record(tmp_path)["stop_reason"] == "The loop was left before its end."


def test_an_error_that_the_user_caught_does_not_make_a_later_break_a_failure(tmp_path):
    trainer = make(tmp_path)
    for epoch in trainer.epochs(5):
        for x, y in epoch.train((X, Y), batch_size=4):
            with pytest.raises(ArgumentError, match="scalar"):
                trainer.step(trainer.model(x))
            trainer.step(F.cross_entropy(trainer.model(x), y))
        break
    assert record(tmp_path)["status"] == "stopped"


def test_an_evaluation_inside_of_training_does_not_take_over_its_checks():
    """The nested evaluation has labels up to 7 and never looks at them; training's own labels are fine."""
    trainer = make()
    for epoch in trainer.epochs(1):
        for batch in epoch.train((X, Y), batch_size=4):
            for _ in epoch.evaluate((X, torch.arange(8)), batch_size=8, name=f"nested{trainer.progress.steps_done}"):
                pass
            outcome = trainer.forward(batch)
            trainer.step(outcome.loss)
    assert trainer.progress.steps_done == 2


def test_an_evaluation_before_the_first_step_does_not_switch_off_trainings_checks():
    class Evaluates(vd.Callback):
        def on_epoch_start(self, trainer):
            trainer.evaluate((X, torch.zeros(8, 2)), batch_size=8)

    trainer = make(loss="mse", callbacks=[Evaluates()])
    with pytest.raises(DataError, match="would broadcast"):
        trainer.fit((X, torch.zeros(8, 1)), batch_size=4, epochs=1)


def test_best_note_names_the_value_that_decided(tmp_path):
    make(tmp_path).fit((X, Y), batch_size=4, epochs=1)
    note = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert note["monitor"] == "train/loss"


def test_keep_best_keeps_as_many_as_it_says(tmp_path):
    """Validation losses by hand: 3, 1, 2, 5, 6, 7. The two best are epochs 2 and 3, the two last 5 and 6."""
    losses = [3.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    policy = vd.Checkpointing(keep_best=2, keep_last=2, monitor="val/score", mode="min")
    trainer = make(tmp_path, checkpoint=policy)
    for epoch in trainer.epochs(6):
        train_once(trainer, epoch)
        for _ in epoch.evaluate((X, Y), batch_size=8):
            trainer.log(score=losses[epoch.index])
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == [f"step-{2 * epoch:08d}" for epoch in (2, 3, 5, 6)]
    assert trainer.result.best["epoch"] == 2


def test_every_checkpoint_is_told(tmp_path):
    teller = Teller()
    make(tmp_path, callbacks=[teller], checkpoint=None).fit((X, Y), batch_size=4, epochs=2)
    on_disk = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert sorted(name for name in teller.told if name.startswith("step-")) == on_disk


def test_weights_that_are_not_finite_are_neither_saved_nor_best(tmp_path):
    class Poison(vd.Callback):
        def on_step_end(self, trainer):
            with torch.no_grad():
                trainer.model.bias.fill_(torch.nan)

    trainer = make(tmp_path, callbacks=[Poison()])
    with pytest.raises(NumericsError, match="'bias' is not finite after step 1"):
        trainer.fit((X, Y), batch_size=8, epochs=1)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert record(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("name", ["train", "", "eval"])
def test_an_evaluation_under_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ArgumentError, match="would mix with"):
        for epoch in make().epochs(1):
            list(epoch.evaluate((X, Y), batch_size=8, name=name))


def test_two_evaluations_of_one_name_in_an_epoch_are_refused():
    with pytest.raises(ArgumentError, match="mix with the evaluation before"):
        for epoch in make().epochs(1):
            for _ in range(2):
                list(epoch.evaluate((X, Y), batch_size=8))


def test_a_result_does_not_grow_when_training_goes_on():
    trainer = make()
    first = trainer.fit((X, Y), batch_size=4, epochs=1)
    trainer.fit((X, Y), epochs=3)
    assert len(first.history) == 1
    assert len(trainer.result.history) == 3


def test_an_evaluation_inside_of_an_evaluations_callback_does_not_call_it_again():
    class Evaluates(vd.Callback):
        calls = 0

        def on_evaluate_end(self, trainer, metrics):
            self.calls += 1
            trainer.evaluate((X, Y), batch_size=8)

    evaluates = Evaluates()
    make(callbacks=[evaluates]).fit((X, Y), (X, Y), batch_size=4, epochs=1)
    assert evaluates.calls == 1


def test_fit_does_without_optional_packages(tmp_path):
    import subprocess
    import sys

    script = (
        "import sys\n"
        "for name in ('pydantic', 'typer', 'rich', 'matplotlib', 'tensorboard', 'pandas', 'torchmetrics'):\n"
        "    sys.modules[name] = None\n"
        "import torch, velodrome as vd\n"
        "r = vd.fit(torch.nn.Linear(8, 2), (torch.eye(8), torch.arange(8) % 2), loss='cross_entropy', batch_size=4,\n"
        "           epochs=1, metrics=['accuracy'], run_dir='run', progress=False, device='cpu')\n"
        "print(sorted(p.name for p in r.run_dir.iterdir()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl" in done.stdout


def test_a_folder_with_files_of_the_users_is_refused_before_they_are_written_over(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("mine")
    with pytest.raises(vd.errors.RefusedError, match=r"holds metrics.csv, which a run would write over"):
        make(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


def test_a_model_whose_state_cannot_be_saved_is_refused_before_it_is_trained(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"k": 1}

        def set_extra_state(self, state):
            pass

    torch.manual_seed(0)
    model = Extra(8, 2)
    before = model.weight.detach().clone()
    trainer = vd.Trainer(model, "sgd", loss="cross_entropy", run_dir=tmp_path / "run", progress=False, loggers=())
    with pytest.raises(ArgumentError, match="'_extra_state', a dict, which a checkpoint of tensors cannot hold"):
        trainer.fit((X, Y), batch_size=4, epochs=1)
    assert torch.equal(model.weight, before)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_right_is_said_once(tmp_path, capsys):
    class Liar(list):
        def __len__(self):
            return 5

    policy = vd.Checkpointing(monitor="val/f1")
    trainer = make(tmp_path, checkpoint=policy)
    for epoch in trainer.epochs(2):
        for x, y in epoch.train(Liar([(X[:4], Y[:4]), (X[4:], Y[4:])])):
            trainer.step(F.cross_entropy(trainer.model(x), y))
        for _ in epoch.evaluate((X, Y), batch_size=8):
            trainer.log(loss=float("nan"))
    said = capsys.readouterr().err
    assert said.count("announced 5 batches; epoch 1 had 2") == 1
    assert said.count("val/loss is nan in epoch 1") == 1
    assert said.count("monitors 'val/f1', which is not among the values of an epoch (train/loss, val/loss)") == 1


@pytest.mark.parametrize(
    ("has_run_dir", "policy", "is_told"),
    [
        (False, {}, False),  # nobody asked, and there is nothing to mark
        (True, {}, True),
        (False, {"checkpoint": vd.Checkpointing(monitor="val/f1")}, True),
    ],
)
def test_a_best_epoch_is_missed_only_where_one_would_be_marked_or_was_asked_for(
    tmp_path, capsys, has_run_dir, policy, is_told
):
    trainer = vd.Trainer(
        nn.ModuleDict({"d": nn.Linear(8, 1), "g": nn.Linear(8, 8)}),
        {"d": "sgd", "g": "sgd"}, lr=0.1, device="cpu", progress=False, run_dir=tmp_path / "run" if has_run_dir else None, loggers=(), **policy,
    )  # fmt: skip
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4):
            for name in ("d", "g"):
                loss = trainer.model["d"](trainer.model["g"](x)).mean()
                trainer.step(loss, optimizer=name)
                trainer.log(**{f"{name}_loss": loss.detach()})
    assert ("no epoch is marked as the best" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"epochs": 1}, "All epochs are done. Nothing was trained: epochs=1 counts from the trainer's first epoch. Give epochs=2 for one more."),
        ({"steps": 2}, "The step budget is used up. Nothing was trained: steps=2 counts from the trainer's first epoch. Give steps=4 for as many more."),
        ({"epochs": 1, "seconds": 60.0}, "Give epochs=2 for one more."),
        ({"seconds": 1e-9}, "The time budget is used up. Nothing was trained: seconds=1e-09 counts from the trainer's first epoch. Give more than"),
    ],
)  # fmt: skip
def test_a_second_fit_within_the_budget_that_is_used_up_says_so(capsys, budget, words):
    trainer = make(progress=True)
    trainer.fit((X, Y), batch_size=4, epochs=1)  # two steps
    assert "Nothing was trained" not in capsys.readouterr().err
    result = trainer.fit((X, Y), batch_size=4, **budget)
    assert trainer.progress.steps_done == 2
    assert result.stop_reason.is_end
    assert capsys.readouterr().err.count(words) == 1
    trainer.fit((X, Y), batch_size=4, epochs=2)
    assert trainer.progress.steps_done == 4
    assert "Nothing was trained" not in capsys.readouterr().err


def test_a_callback_method_on_the_instance_is_called():
    calls = []
    callback = vd.Callback()
    callback.on_step_end = lambda trainer: calls.append(trainer.progress.steps_done)
    make(callbacks=[callback]).fit((X, Y), batch_size=4, epochs=1)
    assert calls == [1, 2]


def test_a_misspelt_event_is_refused():
    class Misspelt(vd.Callback):
        def on_epoch_edn(self, trainer, row):
            pass

    with pytest.raises(ArgumentError, match='on_epoch_edn is no event.*Did you mean "on_epoch_end"'):
        make(callbacks=[Misspelt()])
    with pytest.raises(ArgumentError, match=r"Write callbacks=\[...\]"):
        make(callbacks=vd.Callback())


def test_a_late_label_out_of_range_is_explained():
    batches = [(X[:4], Y[:4]), (X[4:], torch.tensor([0, 1, 7, 0]))]
    with pytest.raises(
        DataError, match=r"train batch after step 1: Target 7 is out of bounds; the labels of this batch go from 0 to 7"
    ):
        make().fit(batches, epochs=1)


def test_batch_norm_on_one_sample_is_explained():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    trainer = vd.Trainer(model, "sgd", loss="cross_entropy", progress=False, device="cpu")
    with pytest.raises(DataError, match=r"after step 1 has one sample, and BatchNorm cannot train on one.*drop_last"):
        trainer.fit((X, Y), batch_size=7, epochs=1)


@pytest.mark.parametrize(("loss", "wish"), [("nll", "LogSoftmax, or use cross_entropy"), ("kl_div", "LogSoftmax")])
def test_losses_over_log_probabilities_refuse_logits(loss, wish):
    target = Y if loss == "nll" else torch.full((8, 2), 0.5)
    with torch.no_grad():
        trainer = make(loss=loss)
        trainer.model.bias.fill_(3.0)
    with pytest.raises(DataError, match=f"never above 0: end the model with {wish}"):
        trainer.fit((X, target), batch_size=4, epochs=1)


def test_a_model_that_returns_a_tuple_is_explained():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    trainer = vd.Trainer(Two(8, 2), "sgd", loss="cross_entropy", progress=False, device="cpu")
    with pytest.raises(DataError, match="returned a tuple; cross_entropy wants a tensor"):
        trainer.fit((X, Y), batch_size=4, epochs=1)


def test_a_loss_object_that_sums_is_refused():
    with pytest.raises(ArgumentError, match="reduction='sum', which is no mean"):
        make(loss=nn.CrossEntropyLoss(reduction="sum"))


def test_too_many_logged_names_are_dropped_with_one_line_and_training_goes_on(capsys):
    trainer = make()
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, Y), batch_size=4):
            trainer.step(F.cross_entropy(trainer.model(x), y))
            trainer.log(**{f"name{index}": 1.0 for index in range(1005)})
    assert trainer.progress.epochs_done == 1
    assert capsys.readouterr().err.count("More than 1000 different names were logged while 'train' went on") == 1


def test_dropped_names_are_said_also_when_the_phase_was_left_early(capsys):
    trainer = make()
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, Y), batch_size=4):
            trainer.step(F.cross_entropy(trainer.model(x), y))
            trainer.log(**{f"name{index}": 1.0 for index in range(1005)})
            break
    assert "More than 1000 different names were logged" in capsys.readouterr().err


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parameters_that_the_loss_does_not_depend_on_are_named_once(accumulate, capsys):
    data = [(torch.randn(4, 2), torch.randn(4, 1))] * 4
    vd.fit(Half(), data, epochs=2, loss="mse", optimizer="sgd", lr=0.1, accumulate=accumulate, device="cpu", progress=False)  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("2 parameters (unused.weight, unused.bias) got no gradient from the first batch") == 1
    vd.fit(Half(), data, epochs=1, loss="mse", optimizer="sgd", lr=0.1, freeze=["unused"], device="cpu", progress=False)
    assert "no gradient" not in capsys.readouterr().err


def test_samples_are_what_most_parts_of_a_batch_have():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, mask, x):
            return self.linear(x) + 0 * mask.sum()

    x, y = torch.randn(20, 4), torch.arange(20) % 3
    data = [(torch.ones(5, 5), x[:2], y[:2]), (torch.ones(5, 5), x[2:], y[2:])]
    model = Masked()
    trainer = vd.Trainer(model, "sgd", lr=0.0, loss="cross_entropy", accumulate=2, device="cpu", progress=False)
    row = trainer.fit(data, epochs=1).metrics
    assert trainer.progress.samples_done == 20
    assert row["train/loss"] == pytest.approx(nn.functional.cross_entropy(model.linear(x), y).item(), rel=1e-6)


def test_an_iterable_of_arrays_is_taken():
    np = pytest.importorskip("numpy")
    x, y = np.random.default_rng(0).normal(size=(8, 2)).astype("float32"), np.zeros((8, 1), "float32")
    result = vd.fit(nn.Linear(2, 1), [(x, y)] * 3, epochs=2, loss="mse", optimizer="sgd", lr=0.1, device="cpu", progress=False)  # fmt: skip
    assert result.metrics["train/loss"] < result.history[0]["train/loss"]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_end_the_run_also_in_its_last_update(clip_norm):
    def step(model, batch):
        output = model(batch[0])
        return nn.functional.mse_loss(output, batch[1]) + torch.sqrt((output * 0).pow(2).sum())  # its gradient is 0 / 0

    with pytest.raises(
        vd.errors.NumericsError, match="gradient norm became nan" if clip_norm else "the gradient of 'weight'"
    ):
        vd.fit(nn.Linear(2, 1), [(torch.randn(4, 2), torch.randn(4, 1))], epochs=1, optimizer="sgd", lr=0.1, step_fn=step,
               clip_norm=clip_norm, device="cpu", progress=False)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"freeze": [0]}, "freeze=.* is no list of patterns"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=True is no list"),
        ({"parameter_groups": ["0"]}, "parameter_groups=.* is no dict"),
        ({"precision": "fp16", "scaler_args": {"init_scale": 0}}, "init_scale.*no number above 0"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, fragment):
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        vd.Trainer(nn.Sequential(nn.Linear(2, 1)), "sgd", lr=0.1, device="cpu", **arguments)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_narrow_precision_that_does_nothing_is_refused(precision):
    with pytest.raises(vd.errors.ArgumentError, match="weights are float64"):
        vd.Trainer(nn.Linear(2, 1).double(), "sgd", lr=0.1, precision=precision, device="cpu")


def test_a_time_without_end_is_refused():
    with pytest.raises(vd.errors.ArgumentError, match="seconds=inf"):
        vd.fit(nn.Linear(2, 1), [(torch.ones(2, 2), torch.ones(2, 1))], seconds=float("inf"), loss="mse", device="cpu")


def test_an_optimizer_that_outlives_its_schedule_is_told(capsys):
    model = nn.ModuleDict({"g": nn.Linear(2, 1), "d": nn.Linear(2, 1)})
    trainer = vd.Trainer(model, {"g": "sgd", "d": "sgd"}, lr=0.1, scheduler="linear", device="cpu", progress=False)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    for epoch in trainer.epochs(2):
        for a, b in epoch.train([(x, y)] * 3):
            for _ in range(5):
                trainer.step(nn.functional.mse_loss(model["d"](a), b), optimizer="d")
            trainer.step(nn.functional.mse_loss(model["g"](a), b), optimizer="g")
    said = capsys.readouterr().err
    assert "learning rate of 'd' was fitted to 6 updates" in said
    assert "'g' was fitted" not in said


def test_a_schedule_whose_length_was_given_by_hand_is_not_outlived(capsys):
    model = nn.Linear(2, 1)
    trainer = vd.Trainer(model, "sgd", lr=0.1, scheduler="linear", scheduler_args={"length": "10 epochs"}, device="cpu", progress=False)  # fmt: skip
    for epoch in trainer.epochs(2):
        for a, b in epoch.train([(torch.randn(4, 2), torch.randn(4, 1))] * 3):
            for _ in range(5):
                trainer.step(nn.functional.mse_loss(model(a), b))
    assert trainer.progress.steps_done == 30
    assert "was fitted to" not in capsys.readouterr().err
