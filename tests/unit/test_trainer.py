"""The trainer as its users see it: what it shows, what it gives back, how it goes on."""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from velodrome import Callback, Checkpointing, DataLoader, StopReason, Trainer
from velodrome.checkpoint.read import resolve_weights
from velodrome.errors import ArgumentError, DataError, NumericsError, RefusedError

X, Y = torch.arange(8.0).reshape(8, 1), torch.zeros(8, 1)


def one_weight(value=1.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def make_trainer(lr=0.0, **arguments):
    arguments = {"loss": "mse", "progress": False, "device": "cpu", **arguments}
    return Trainer(one_weight(), "sgd", lr=lr, **arguments)


class FailsAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.progress.steps_done == self.step:
            raise RuntimeError("mine")


class FailsInEvaluation(Callback):
    def on_evaluate_end(self, trainer, metrics):
        raise RuntimeError("mine")


# -- what is shown ------------------------------------------------------------------------------------------------------


def test_each_epoch_shows_one_line(capsys):
    make_trainer(progress=True).fit((X, Y), (X, Y), batch_size=4, epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "train loss 17.5" in lines[-1].replace("  ", " ")


def test_after_an_error_no_line_says_that_the_epoch_ended(capsys):
    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(progress=True, callbacks=[FailsAt(3)]).fit((X, Y), batch_size=4, epochs=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2"]


def test_progress_off_shows_nothing(capsys):
    make_trainer().fit((X, Y), batch_size=4, epochs=1)
    assert capsys.readouterr() == ("", "")


# -- errors -------------------------------------------------------------------------------------------------------------


def test_error_is_told_once_and_the_reason_is_kept():
    events = []

    class Listens(Callback):
        def on_exception(self, trainer, error):
            events.append(str(error))

        def on_fit_end(self, trainer):
            events.append(trainer.result.stop_reason)

    trainer = make_trainer(callbacks=[FailsAt(3), Listens()])
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit((X, Y), batch_size=4, epochs=2)
    assert events == ["mine", StopReason.FAILED]
    assert len(trainer.result.history) == 1


def test_keyboard_interrupt_passes_and_is_named():
    class Interrupts(Callback):
        def on_step_end(self, trainer):
            raise KeyboardInterrupt

    trainer = make_trainer(callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit((X, Y), batch_size=4, epochs=2)
    assert trainer.result.stop_reason is StopReason.INTERRUPTED


def test_trainer_goes_on_after_an_error():
    trainer = make_trainer(callbacks=[FailsAt(3)])
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit((X, Y), batch_size=4, epochs=2)
    result = trainer.fit((X, Y), batch_size=4, epochs=2)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.stop_reason is StopReason.EPOCHS


def test_metrics_of_a_model_that_gives_no_output_are_refused():
    class ReturnsLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x, y):
            return (self.layer(x) - y).square().mean()

    trainer = Trainer(ReturnsLoss(), "sgd", lr=0.0, metrics=["accuracy"], progress=False, device="cpu")
    with pytest.raises(ArgumentError, match=r"metrics \(accuracy\) need outputs and targets, .* a dict with"):
        trainer.fit((X, Y), batch_size=4, epochs=1)


# -- budgets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "rows", "reason"),
    [
        (1, [(1, 1)], StopReason.STEPS),
        (2, [(1, 2)], StopReason.STEPS),
        (3, [(1, 2), (2, 3)], StopReason.STEPS),
        (4, [(1, 2), (2, 4)], StopReason.STEPS),
        (5, [(1, 2), (2, 4), (3, 5)], StopReason.STEPS),
        (7, [(1, 2), (2, 4), (3, 6)], StopReason.EPOCHS),
    ],
)
def test_steps_end_the_run_within_an_epoch_or_at_its_end(steps, rows, reason):
    result = make_trainer().fit((X, Y), (X, Y), batch_size=4, steps=steps, epochs=3)
    assert [(row["epoch"], row["step"]) for row in result.history] == rows
    assert result.stop_reason is reason
    assert all("val/loss" in row for row in result.history)


def test_seconds_end_the_run_within_an_epoch():
    trainer = make_trainer()
    endless = [(X, Y)] * 10_000_000
    result = trainer.fit(endless, seconds=0.05)
    assert result.stop_reason is StopReason.SECONDS
    assert len(result.history) == 1
    assert 0.05 <= result.metrics["seconds"] < 2
    assert trainer.progress.epochs_done == 0


@pytest.mark.parametrize(
    ("event", "steps"), [("on_step_end", 1), ("on_epoch_end", 2), ("on_fit_start", 0), ("on_evaluate_end", 2)]
)
def test_stop_from_a_callback_ends_the_run_in_good_order(event, steps):
    class Stops(Callback):
        pass

    setattr(Stops, event, lambda self, trainer, *details: trainer.stop())
    result = make_trainer(callbacks=[Stops()]).fit((X, Y), (X, Y), batch_size=4, epochs=5)
    assert result.stop_reason is StopReason.REQUESTED
    assert result.metrics.get("step", 0) == steps
    assert steps == 0 or "val/loss" in result.metrics


def test_stop_reason_of_the_caller_is_kept():
    class Stops(Callback):
        def on_step_end(self, trainer):
            trainer.stop(StopReason.INTERRUPTED)

    assert make_trainer(callbacks=[Stops()]).fit((X, Y), batch_size=4, epochs=5).stop_reason is StopReason.INTERRUPTED


def test_fit_again_goes_on_to_the_larger_budget():
    straight, parts = make_trainer(lr=0.001, seed=3), make_trainer(lr=0.001, seed=3)
    straight.fit((X, Y), batch_size=3, epochs=4)
    parts.fit((X, Y), batch_size=3, epochs=2)
    result = parts.fit((X, Y), batch_size=3, epochs=4)
    assert torch.equal(straight.model.weight, parts.model.weight)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in result.history] == [row["train/loss"] for row in straight.result.history]


def test_fit_again_to_the_same_budget_does_nothing():
    trainer = make_trainer(lr=0.1)
    trainer.fit((X, Y), batch_size=4, epochs=1)
    before = trainer.model.weight.detach().clone()
    result = trainer.fit((X, Y), batch_size=4, epochs=1)
    assert torch.equal(trainer.model.weight, before)
    assert len(result.history) == 1
    assert result.stop_reason is StopReason.EPOCHS


# -- the explicit API ---------------------------------------------------------------------------------------------------


def test_log_averages_scalars_by_batch_and_vectors_by_sample():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=5, shuffle=False):
            trainer.step(trainer.model(x).mean())
            trainer.log(mean=x.mean(), vector=x, whole=len(x), number=2.5, right=x > 3)
        for x, _ in epoch.evaluate((X, Y), batch_size=3):
            trainer.log(mean=x.mean(), first=x[0, 0])
        for x, _ in epoch.evaluate((X[:2], Y[:2]), batch_size=1, name="test"):
            trainer.log(mean=x.mean())
    row = trainer.result.metrics
    assert row["train/mean"] == row["train/vector"] == 3.5  # 0 + ... + 7 = 28, over 8
    assert row["train/loss"] == 3.5
    assert row["train/whole"] == (5 * 5 + 3 * 3) / 8
    assert row["train/number"] == 2.5
    assert row["train/right"] == 0.5
    assert row["val/mean"] == pytest.approx(3.5)
    assert row["val/first"] == (0 * 3 + 3 * 3 + 6 * 2) / 8
    assert row["test/mean"] == 0.5


def test_log_refuses_what_cannot_be_averaged():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.model(x).mean())
            with pytest.raises(ArgumentError, match=r"name='run' cannot be averaged\. Log numbers or tensors"):
                trainer.log(name="run")


def test_log_does_not_keep_the_graph_of_a_live_tensor():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4):
            loss = trainer.model(x).mean()
            trainer.step(loss)
            trainer.log(live=loss)
    assert trainer.result.metrics["train/live"] == 3.5


def test_items_weigh_the_mean_of_the_loss():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=4, shuffle=False):
            # the means 1.5 and 5.5, over 1 item and over 3
            trainer.step(trainer.model(x).mean(), items=1 if x[0] == 0 else 3)
    assert trainer.result.metrics["train/loss"] == (1.5 * 1 + 5.5 * 3) / 4


def test_step_without_forward_updates_and_frees_gradients():
    trainer = make_trainer(lr=0.5, loss=None)
    for epoch in trainer.epochs(1):
        for x, _ in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.model(x).mean())
    assert trainer.model.weight.item() == 1 - 0.5 * 3.5  # the gradient of mean(w x) is mean(x) = 3.5
    assert trainer.model.weight.grad is None


def test_iterable_without_a_length_trains():
    class Batches:
        def __iter__(self):
            yield X[:5], Y[:5]
            yield X[5:], Y[5:]

    result = make_trainer().fit(Batches(), Batches(), epochs=2)
    assert [row["train/loss"] for row in result.history] == pytest.approx([17.5, 17.5])
    assert [row["samples"] for row in result.history] == [8, 16]
    assert result.metrics["val/loss"] == pytest.approx(17.5)


def test_generator_does_for_one_epoch():
    result = make_trainer().fit(((X, Y) for _ in range(3)), epochs=1)
    assert result.metrics["step"] == 3


# -- batches and models of every shape ----------------------------------------------------------------------------------


class TakesTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, a, b):
        return self.layer(a + b)


def test_tuple_of_several_inputs_goes_to_the_model_in_order():
    trainer = Trainer(TakesTwo(), "sgd", lr=0.0, loss="mse", progress=False, device="cpu")
    result = trainer.fit((X, -X, Y), batch_size=3, epochs=1)
    assert result.metrics["train/loss"] == 0.0
    assert torch.equal(trainer.predict((X, X, Y), batch_size=3), 2 * X)


@pytest.mark.parametrize("key", ["target", "targets", "label", "labels", "y"])
def test_dict_batch_goes_to_the_model_by_name(key):
    trainer = Trainer(TakesTwo(), "sgd", lr=0.0, loss="mse", progress=False, device="cpu")
    result = trainer.fit({"b": X, "a": X, key: Y}, batch_size=3, epochs=1)
    assert result.metrics["train/loss"] == pytest.approx(4 * 17.5)
    assert torch.equal(trainer.predict({"b": X, "a": X, key: Y}, batch_size=3), 2 * X)


class Bundle:
    def __init__(self, loss, logits):
        self.loss = loss
        self.logits = logits


class ReturnsItsLoss(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        self.how = how

    def forward(self, x, y):
        output = self.layer(x)
        loss = (output - y).square().mean()
        if self.how == "dict":
            return {"loss": loss, "logits": output, "target": y}
        return loss if self.how == "tensor" else Bundle(loss, output)


@pytest.mark.parametrize("how", ["tensor", "dict", "object"])
def test_model_that_returns_its_loss_needs_none(how):
    trainer = Trainer(ReturnsItsLoss(how), "sgd", lr=0.0, progress=False, device="cpu")
    result = trainer.fit((X, Y), (X, Y), batch_size=3, epochs=1)
    assert result.metrics["train/loss"] == pytest.approx(17.5)
    assert result.metrics["val/loss"] == pytest.approx(17.5)


def test_model_that_returns_a_dict_feeds_the_metrics():
    model = ReturnsItsLoss("dict")
    trainer = Trainer(
        model, "sgd", lr=0.0, metrics={"mean": lambda output, target: output}, progress=False, device="cpu"
    )
    assert trainer.fit((X, Y), batch_size=3, epochs=1).metrics["train/mean"] == 3.5


@pytest.mark.parametrize("returns", ["tensor", "dict"])
def test_step_fn_replaces_forward_and_loss(returns):
    def step_fn(model, batch):
        x, y = batch
        output = model(x)
        loss = (output - y).abs().mean()
        return loss if returns == "tensor" else {"loss": loss, "output": output, "target": y}

    trainer = Trainer(one_weight(), "sgd", lr=0.0, step_fn=step_fn, progress=False, device="cpu")
    assert trainer.fit((X, Y), (X, Y), batch_size=3, epochs=1).metrics["train/loss"] == pytest.approx(3.5)
    assert trainer.evaluate((X, Y))["loss"] == 3.5


def test_step_fn_without_a_loss_is_refused():
    trainer = Trainer(
        one_weight(), "sgd", lr=0.0, step_fn=lambda model, batch: {"output": 1}, progress=False, device="cpu"
    )
    with pytest.raises(
        ArgumentError, match=r"step_fn returned a dict without a loss tensor\. It must return a scalar tensor or a dict"
    ):
        trainer.fit((X, Y), batch_size=3, epochs=1)


# -- evaluate and predict -----------------------------------------------------------------------------------------------


def test_evaluate_is_exact_over_ragged_batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(53, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (53,), generator=generator)
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        output = model(x)
        loss = nn.functional.cross_entropy(output, labels).item()
        accuracy = (output.argmax(1) == labels).double().mean().item()
    trainer = Trainer(model, None, loss="cross_entropy", metrics=["accuracy"], progress=False, device="cpu")
    for batch_size in [1, 2, 3, 5, 7, 16, 50, 52, 53, 1000]:
        values = trainer.evaluate((x, labels), batch_size=batch_size)
        assert values["loss"] == pytest.approx(loss, rel=1e-12)
        assert values["accuracy"] == accuracy
        assert list(values) == ["loss", "accuracy"]


def test_predict_gives_outputs_in_order_and_leaves_targets_out():
    trainer = make_trainer()
    for batch_size in (1, 3, 8, None):
        assert torch.equal(trainer.predict((X, Y), batch_size=batch_size), X)
        assert torch.equal(trainer.predict(X, batch_size=batch_size), X)


def test_predict_keeps_outputs_that_are_no_tensors():
    class Pair(nn.Module):
        def forward(self, x):
            return {"twice": 2 * x, "parts": (x, x + 1)}

    outputs = Trainer(Pair(), None, progress=False, device="cpu").predict(X, batch_size=5)
    assert [len(output["twice"]) for output in outputs] == [5, 3]
    assert torch.equal(outputs[1]["parts"][1], X[5:] + 1)


def test_endless_generator_feeds_a_second_fit():
    def endless():
        while True:
            yield X, Y

    trainer, data = make_trainer(), endless()
    trainer.fit(data, steps=2)
    trainer.fit(data, steps=5)
    assert trainer.progress.steps_done == 5


class Parts(NamedTuple):
    twice: torch.Tensor
    name: str


class ReturnsParts(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "named tuple":
            return Parts(2 * x, "parts")
        return {"twice": 2 * x, "more": [x]}


def test_predict_gives_tensors_that_can_be_trained_on():
    for how in ("named tuple", "dict"):
        outputs = Trainer(ReturnsParts(how), None, progress=False, device="cpu").predict(X, batch_size=5)
        twice = [output.twice if how == "named tuple" else output["twice"] for output in outputs]
        assert torch.equal(torch.cat(twice), 2 * X)
        assert not any(tensor.is_inference() for tensor in twice)
    assert type(outputs[1]) is dict
    assert not outputs[1]["more"][0].is_inference()
    assert not make_trainer().predict(X).is_inference()


@pytest.mark.parametrize("loss", [None, "mse"])
def test_predict_takes_the_last_of_a_tuple_for_the_target_with_or_without_a_loss(loss):
    trainer = Trainer(TakesTwo(), None, loss=loss, progress=False, device="cpu")
    assert torch.equal(trainer.predict((X, X, Y), batch_size=3), 2 * X)


def test_predict_reads_a_shuffled_loader_in_the_order_of_its_data():
    loader = DataLoader((X, Y), 3, shuffle=True, drop_last=True)
    trainer = make_trainer()
    assert torch.equal(trainer.predict(loader), X)
    trainer.fit(loader, epochs=1)
    assert torch.equal(trainer.predict(loader), X)


# -- the result ---------------------------------------------------------------------------------------------------------


def test_history_of_a_linear_model_by_hand():
    # One weight w = 1, x = 2, target 0, loss (2w)^2: gradient 8w, lr 1/16, so that w halves every step.
    x, y = torch.tensor([[2.0]]), torch.tensor([[0.0]])
    trainer = Trainer(one_weight(), "sgd", lr=1 / 16, loss="mse", progress=False, device="cpu")
    result = trainer.fit((x, y), (x, y), batch_size=1, epochs=3)
    assert [row["train/loss"] for row in result.history] == [4.0, 1.0, 0.25]
    assert [row["val/loss"] for row in result.history] == [1.0, 0.25, 0.0625]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert [row["lr"] for row in result.history] == [1 / 16] * 3
    assert [row["samples"] for row in result.history] == [1, 2, 3]
    assert list(result.history[0])[:5] == ["epoch", "step", "samples", "seconds", "lr"]
    assert result.metrics is result.history[-1]
    assert result.best == result.history[-1]
    assert result.run_dir is None
    assert result.stop_reason is StopReason.EPOCHS
    assert str(result.stop_reason) == "All epochs are done."


def test_best_is_the_row_with_the_smallest_validation_loss():
    # Training pulls w from 1 to 4; validation wants 2: best after the step that comes nearest to it.
    train, val = (torch.ones(1, 1), torch.full((1, 1), 4.0)), (torch.ones(1, 1), torch.full((1, 1), 2.0))
    trainer = Trainer(one_weight(), "sgd", lr=1 / 6, loss="mse", progress=False, device="cpu")
    result = trainer.fit(train, val, batch_size=1, epochs=4)
    # w: 1 + 3/3 = 2, then 2.67, 3.11, ...
    assert result.best is not None
    assert result.best["epoch"] == 1
    assert result.best["val/loss"] == pytest.approx(0, abs=1e-12)


def test_metric_that_is_never_logged_has_no_best():
    trainer = make_trainer(checkpoint=Checkpointing(monitor="val/accuracy"))
    assert trainer.fit((X, Y), (X, Y), batch_size=4, epochs=2).best is None


def test_largest_accuracy_is_the_best():
    trainer = make_trainer(checkpoint=Checkpointing(monitor="val/accuracy"))
    for epoch, accuracy in zip(trainer.epochs(3), (0.1, 0.9, 0.5), strict=True):
        for batch in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.forward(batch).loss)
        for _ in epoch.evaluate((X, Y), batch_size=8):
            trainer.log(accuracy=accuracy)
    assert trainer.result.best is not None
    assert trainer.result.best["epoch"] == 2


def test_without_validation_the_training_loss_decides_until_there_is_one():
    trainer = make_trainer()
    for epoch, (train_loss, val_loss) in zip(
        trainer.epochs(4), [(2, None), (1, None), (0.5, 9), (0.1, None)], strict=True
    ):
        for _ in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.model.weight.sum() * 0 + train_loss)
        if val_loss is not None:
            for _ in epoch.evaluate((X, Y), batch_size=8):
                trainer.log(loss=val_loss)
    assert trainer.result.best is not None
    assert trainer.result.best["epoch"] == 3  # the only one with a validation loss


def test_result_before_any_training_is_empty():
    result = make_trainer().result
    assert (result.history, result.metrics, result.best, result.stop_reason) == ([], {}, None, None)


def test_result_as_a_table():
    pandas = pytest.importorskip("pandas")
    result = make_trainer().fit((X, Y), (X, Y), batch_size=4, epochs=2)
    table = result.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["train/loss"].tolist() == [17.5, 17.5]
    assert table["epoch"].tolist() == [1, 2]


def test_result_as_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    make_trainer().fit((X, Y), (X, Y), batch_size=4, epochs=2).plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# -- optimizer and seed -------------------------------------------------------------------------------------------------


def test_seed_makes_two_runs_equal_and_another_seed_does_not():
    weights = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        trainer = make_trainer(lr=0.001, seed=seed)
        trainer.fit((X, Y + X.sin()), batch_size=3, epochs=2)
        weights[name] = trainer.model.weight.item()
    assert weights["one"] == weights["again"] != weights["other"]


def test_callbacks_meet_the_events_in_order():
    events = []

    class Listens(Callback):
        pass

    for event in ("on_fit_start", "on_epoch_start", "on_step_end", "on_evaluate_end", "on_epoch_end", "on_fit_end"):
        setattr(Listens, event, lambda self, trainer, *details, event=event: events.append(event))
    make_trainer(callbacks=[Listens()]).fit((X, Y), (X, Y), batch_size=4, epochs=2)
    epoch = ["on_epoch_start", "on_step_end", "on_step_end", "on_evaluate_end", "on_epoch_end"]
    assert events == ["on_fit_start", *epoch, *epoch, "on_fit_end"]


# -- with a run directory -----------------------------------------------------------------------------------------------


class BecomesNan(nn.Module):
    """A model whose output is NaN from a training batch on."""

    def __init__(self, at):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.at = at
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.layer(x) * (float("nan") if self.calls >= self.at else 1.0)


@pytest.mark.parametrize(
    "every", ["every step", "every 2 steps", "every 4 samples", "every 0.000001 seconds", "every epoch"]
)
def test_weights_after_a_nan_loss_are_never_saved(tmp_path, every):
    model = BecomesNan(at=4)
    trainer = Trainer(
        model, "sgd", lr=0.01, loss="mse", run_dir=tmp_path / "run", checkpoint=every, loggers=[], log_every="1000 steps",
        progress=False, device="cpu",
    )  # fmt: skip
    with pytest.raises(NumericsError, match="The training loss became nan"):
        trainer.fit((X, Y), batch_size=4, epochs=10)
    saved = list((tmp_path / "run" / "checkpoints").rglob("model.safetensors"))
    for path in saved:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    steps = {int(path.parent.name.removeprefix("step-")) for path in saved}
    assert steps
    assert max(steps) < 4


def test_run_directory_changes_no_bit(tmp_path):
    weights = []
    for run_dir in (None, tmp_path / "run"):
        trainer = make_trainer(lr=0.001, seed=3, run_dir=run_dir, checkpoint="every 2 steps")
        trainer.fit((X, Y + X.sin()), (X, Y), batch_size=3, epochs=2)
        weights.append(trainer.model.weight.item())
    assert weights[0] == weights[1]


def test_best_and_last_weights_are_on_the_disk(tmp_path):
    train, val = (torch.ones(1, 1), torch.full((1, 1), 4.0)), (torch.ones(1, 1), torch.full((1, 1), 2.0))
    trainer = Trainer(
        one_weight(), "sgd", lr=1 / 6, loss="mse", run_dir=tmp_path / "run", loggers=[], progress=False, device="cpu"
    )
    result = trainer.fit(train, val, batch_size=1, epochs=4)
    assert result.run_dir == tmp_path / "run"
    # w: 2 after the first epoch, as validation wants it; then 2.67, 3.11 and 3.41
    assert load_file(resolve_weights(tmp_path / "run", "best"))["weight"].item() == pytest.approx(2.0)
    assert load_file(resolve_weights(tmp_path / "run", "last"))["weight"].item() == trainer.model.weight.item()


def test_run_that_goes_on_keeps_one_journal(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[])
    trainer.fit((X, Y), batch_size=4, epochs=1)
    trainer.fit((X, Y), batch_size=4, epochs=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2, 3]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "done"


def test_error_leaves_its_traceback_and_the_status_failed(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[], callbacks=[FailsAt(3)])
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit((X, Y), batch_size=4, epochs=2)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "failed"
    assert "RuntimeError: mine" in facts["error"]
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_trainer_refused_once_writes_its_folder_when_it_is_given_good_data(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=["csv"])
    for _ in range(2):
        with pytest.raises(DataError, match="would broadcast"):
            trainer.fit((X, Y.squeeze(1)), batch_size=4, epochs=1)
        assert not (tmp_path / "run").exists()
        with pytest.raises(DataError, match="holds NaN"):
            trainer.fit((X / 0, Y), batch_size=4, epochs=1)
        assert not (tmp_path / "run").exists()
    trainer.fit((X, Y), batch_size=4, epochs=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
    assert load_file(resolve_weights(tmp_path / "run", "last"))["weight"].shape == (1, 1)


def test_run_directory_that_cannot_be_written_is_refused_before_the_model_is_touched(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"run_dir='.*file/run' cannot be written to: .*Give another run_dir"):
        make_trainer(run_dir=tmp_path / "file" / "run")


def test_run_directory_with_a_run_in_it_is_refused(tmp_path):
    make_trainer(run_dir=tmp_path / "run", loggers=[]).fit((X, Y), batch_size=4, epochs=1)
    with pytest.raises(RefusedError, match=r"holds a run already .*Give another run_dir"):
        make_trainer(run_dir=tmp_path / "run")
