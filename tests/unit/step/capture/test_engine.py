"""The captured engine with a recorder for the CPU: everything but the graph itself."""

import random

import numpy
import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer
from velodrome.testing.replayer import Replayer
from velodrome.testing.tape import TapeReplayer

NUM, BATCH = 90, 16  # 5 full batches and one of 10 samples an epoch
CLASSES = 3


class Net(nn.Module):
    """Dropout and BatchNorm after one layer, which has no bias: before BatchNorm its gradient is rounding alone."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu()))


def make_data(num=NUM):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num, 8, generator=generator), torch.randint(0, CLASSES, (num,), generator=generator)


def make_trainer(engine, *, model=None, optimizer="adam", **arguments):
    torch.manual_seed(1)
    model = Net() if model is None else model()
    more = {
        "loss": "cross_entropy",
        "lr": 0.01,
        "metrics": ["accuracy"],
        "seed": 3,
        "log_every": "4 steps",
        **arguments,
    }
    return Trainer(model, optimizer, device="cpu", engine=engine, progress=False, **more)


def fit(engine, *, data=None, epochs=2, batch_size=BATCH, **arguments):
    trainer = make_trainer(engine, **arguments)
    data = make_data() if data is None else data
    trainer.fit(data, data, batch_size=batch_size, epochs=epochs)
    return trainer


def assert_close(one, other, tolerance=2e-5):
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance), (
            f"{name}: {(a - b).abs().max():g}"
        )


def differ(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


SWITCHES = {
    "adam": {},
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "optimizer_args": {"momentum": 0.9, "nesterov": True}},
    "schedule": {"scheduler": "cosine", "scheduler_args": {"warmup": 3}},
    "torch's schedule": {"scheduler": "steplr", "scheduler_args": {"step_size": 1, "gamma": 0.1}},
    "clipping": {"clip_norm": 0.05, "clip_value": 0.04, "grad_norms": True},
    "ema": {"ema": 0.9},
    "bf16": {"precision": "bf16"},
    "no metrics": {"metrics": []},
}


@pytest.mark.parametrize("make_recorder", [Replayer, TapeReplayer])
@pytest.mark.parametrize("name", SWITCHES)
def test_replayed_steps_end_where_eager_ones_do(make_recorder, name):
    recorder = make_recorder()
    captured, eager = fit(recorder, **SWITCHES[name]), fit("eager", **SWITCHES[name])

    # bf16: the eager engine keeps narrow copies of the weights for the step, which a recording makes anew; the numbers are the same.
    assert_close(captured, eager)
    for one, other in zip(captured.result.history, eager.result.history, strict=True):
        for value in ("train/loss", "train/accuracy", "train/grad_norm", "val/loss", "val/accuracy", "lr"):
            assert one.get(value, 0.0) == pytest.approx(other.get(value, 0.0), rel=1e-4, abs=1e-9), value
    assert recorder.num_recorded == 1
    # 12 steps: 3 of warm-up, 2 odd last batches (steps 6 and 12), and 7 replays; 3 more before they were trusted.
    assert recorder.num_replayed == 7 + 3


def test_with_the_learning_rate_frozen_the_schedule_would_be_lost():
    """The negative control of the comparison above: one learning rate for all steps ends elsewhere."""
    captured = fit(Replayer(), scheduler="cosine")
    assert differ(captured, fit("eager")) > 1e-3


class Told(Callback):
    def __init__(self):
        self.rates = []

    def on_step_end(self, trainer):
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])


def test_groups_keep_their_numbers():
    told = Told()
    trainer = fit(Replayer(), callbacks=[told], scheduler="linear", epochs=1)

    assert all(type(rate) is float for rate in told.rates)
    assert trainer.optimizer.param_groups[0]["capturable"] is False


def test_a_line_says_that_it_records(tmp_path):
    fit(Replayer(), run_dir=tmp_path / "run", loggers=())
    line = "engine: captured: from step 4 on a step is one replay. 3 steps were made both ways and agree bit for bit."
    assert line in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


class OptionsChange(Callback):
    """Another option of the optimizer at each of the given steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, trainer):
        if trainer.progress.steps_done in self.steps:
            group = trainer.optimizer.param_groups[0]
            group["weight_decay"] += 0.1


def test_another_option_of_the_optimizer_is_recorded_anew():
    recorder = Replayer()
    captured = fit(recorder, callbacks=[OptionsChange(4)])

    assert_close(captured, fit("eager", callbacks=[OptionsChange(4)]))
    assert recorder.num_recorded == 2
    assert differ(captured, fit("eager")) > 1e-4


def test_options_that_change_again_and_again_end_the_recording(capsys):
    steps = range(3, 12)
    recorder = Replayer()
    captured = fit(recorder, callbacks=[OptionsChange(*steps)])

    assert_close(captured, fit("eager", callbacks=[OptionsChange(*steps)]))
    assert recorder.num_recorded == 4
    assert "engine: eager instead of captured: the optimizer's options or state change again and again." in "".join(
        capsys.readouterr()
    )


class LoadsOptimizer(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5:
            trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())


class LoadsModel(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5:
            trainer.model.load_state_dict({name: 0.5 * value for name, value in trainer.model.state_dict().items()})


class ReplacesWeights(Callback):
    """The parameter stays the same object, and lies elsewhere: what was recorded works on memory that nobody reads."""

    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5:
            weight = trainer.model.last.weight
            weight.data = 0.5 * weight.data


class FreezesNorm(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5:
            trainer.model.norm.eval()


class FreezesLayer(Callback):
    def on_epoch_start(self, trainer):
        trainer.model.first.requires_grad_(trainer.progress.epochs_done == 0)


class Evaluates(Callback):
    def on_step_end(self, trainer):
        trainer.log(inner=torch.tensor(trainer.evaluate(make_data(20), batch_size=10)["loss"]))


@pytest.mark.parametrize("make_recorder", [Replayer, TapeReplayer])
@pytest.mark.parametrize("change", [LoadsOptimizer, LoadsModel, ReplacesWeights, FreezesNorm, FreezesLayer, Evaluates])
def test_what_a_callback_changes_is_seen(make_recorder, change):
    captured = fit(make_recorder(), callbacks=[change()], ema=0.8)
    assert_close(captured, fit("eager", callbacks=[change()], ema=0.8))


def test_sizes_that_come_several_times_in_a_row_are_recorded_too():
    sizes = [8] * 6 + [12] * 6 + [5]
    x, y = make_data(sum(sizes))
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    recorder = Replayer()
    captured = make_trainer(recorder)
    captured.fit(batches, epochs=2)
    eager = make_trainer("eager")
    eager.fit(batches, epochs=2)

    assert_close(captured, eager)
    assert recorder.num_recorded == 2
    # The first epoch: 3 batches of 8, then, from the third of 12 on, 4. The second: 6 and 6. 2 * 3 before they were trusted.
    assert recorder.num_replayed == 3 + 4 + 6 + 6 + 2 * 3


def test_dict_batches_and_a_step_fn():
    def step(model, batch):
        output = model(batch["x"])
        losses = nn.functional.cross_entropy(output, batch["y"], reduction="none")
        mask = (batch["y"] != 0).float()
        return {"loss": (losses * mask).sum() / mask.sum(), "items": mask.sum(), "output": output, "target": batch["y"]}

    x, y = make_data()
    recorder = Replayer()
    one = fit(recorder, data={"x": x, "y": y}, loss=None, step_fn=step)
    other = fit("eager", data={"x": x, "y": y}, loss=None, step_fn=step)

    assert_close(one, other)
    assert recorder.num_replayed == 7 + 3
    assert one.result.metrics["train/loss"] == pytest.approx(other.result.metrics["train/loss"], rel=1e-5)


# -- what is not recorded --------------------------------------------------------------------------------------------


class Draws(Net):
    source = "python"

    def forward(self, x):
        factor = random.random() if self.source == "python" else float(numpy.random.rand())
        return super().forward(x) * (1 + 0.1 * factor)


class DrawsNumPy(Draws):
    source = "numpy"


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) / (1 + self.calls)


class CountsInAList(Net):
    """The list stays the same one: only what is in it changes."""

    def __init__(self):
        super().__init__()
        self.held = [0]

    @property
    def calls(self):
        return self.held[0]

    def forward(self, x):
        self.held[0] += self.training
        return super().forward(x) / (1 + self.held[0])


class AssignsBuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return super().forward(x - self.mean)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Draws, "a step draws from Python's random"),
        (DrawsNumPy, "a step draws from numpy.random"),
        (Counts, "a step assigns Counts.calls"),
        (CountsInAList, "a step assigns CountsInAList.held"),
        (AssignsBuffer, "a step assigns another tensor to the buffer mean of AssignsBuffer: change it in place"),
    ],
)
def test_python_that_changes_from_step_to_step_is_run_eagerly(capsys, model, reason):
    recorder = Replayer()
    random.seed(0)
    captured = fit(recorder, model=model)
    random.seed(0)
    eager = fit("eager", model=model)

    assert f"engine: eager instead of captured: {reason}" in "".join(capsys.readouterr())
    assert recorder.num_recorded == 0
    assert_close(captured, eager)
    assert getattr(captured.model, "calls", 12) == getattr(eager.model, "calls", 12) == 12


class Waits(Net):
    def forward(self, x):
        return super().forward(x) * (2.0 if x.sum().item() > 1e9 else 1.0)


def test_a_step_that_waits_is_run_eagerly_and_the_line_is_named(capsys):
    recorder = TapeReplayer()
    captured, eager = fit(recorder, model=Waits), fit("eager", model=Waits)
    shown = "".join(capsys.readouterr())
    assert f"engine: eager instead of captured: a step waits for the device ({__file__}, line " in shown
    assert recorder.num_recorded == 0
    assert_close(captured, eager)


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.last.register_forward_hook(lambda *_: None)


class Loss(nn.Module):
    def forward(self, output, target):
        return nn.functional.cross_entropy(output, target)


def hooked_optimizer(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def replaced_step(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)
    step = optimizer.step
    optimizer.step = lambda *arguments: step(*arguments)
    return optimizer


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"accumulate": 2}, "an update has 2 micro-batches (accumulate)"),
        ({"precision": "fp16"}, 'fp16 reads in each update whether the one before was made. Use precision="bf16"'),
        (
            {"optimizer": "rmsprop"},
            "of RMSprop torch has no fused version that takes its learning rate from the device",
        ),
        ({"optimizer_args": {"fused": False}}, "Adam is not fused. Give the optimizer by name"),
        ({"on_nonfinite": "skip"}, "the policy on_nonfinite reads every loss before it is used"),
        ({"model": Hooked}, "the module last has hooks, whose Python would not run in a replay"),
        ({"optimizer": replaced_step, "lr": None}, "Adam.step is not torch's own: another library has replaced it"),
        ({"optimizer": hooked_optimizer, "lr": None}, "Adam has hooks, whose Python would not run in a replay"),
    ],
)
def test_what_cannot_be_recorded_says_so_and_runs_eagerly(capsys, arguments, reason):
    recorder = Replayer()
    captured = fit(recorder, **arguments)
    eager = fit("eager", **arguments)

    assert f"engine: eager instead of captured: {reason}" in "".join(capsys.readouterr())
    assert recorder.num_recorded == 0
    assert differ(captured, eager) == 0.0


def test_several_optimizers_run_eagerly(capsys):
    def step(model, batch):
        return nn.functional.cross_entropy(model["two"](model["one"](batch[0])), batch[1])

    def make(engine):
        torch.manual_seed(0)
        model = nn.ModuleDict({"one": nn.Linear(8, 4), "two": nn.Linear(4, 3)})
        return Trainer(
            model, {"one": "sgd", "two": "sgd"}, lr=0.1, step_fn=step, device="cpu", engine=engine, progress=False
        )

    trainer = make(Replayer())
    for epoch in trainer.epochs(1):
        for batch in epoch.train(make_data(), batch_size=8):
            for name in ("one", "two"):
                trainer.step(trainer.forward(batch).loss, optimizer=name)
    assert "engine: eager: not captured, because 2 optimizers take turns" in "".join(capsys.readouterr())
    assert trainer.progress.steps_done == 24


class Spoiled(Replayer):
    """Replays something else than what was recorded."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def record(self, work):
        replay = super().record(work)

        def replay_wrongly():
            replay()
            self.spoil()

        return replay_wrongly


def test_a_recording_that_ends_elsewhere_is_not_trusted(capsys):
    held = []

    def nudge():
        with torch.no_grad():
            held[0].last.weight.add_(0.01)

    recorder = Spoiled(nudge)

    def model():
        held.append(Net())
        return held[-1]

    captured = fit(recorder, model=model)
    eager = fit("eager")

    assert "engine: eager instead of captured: 3 steps made both ways do not agree: last.weight ended" in "".join(
        capsys.readouterr()
    )
    assert recorder.num_replayed == 3
    assert_close(captured, eager)


def test_a_recording_that_draws_other_masks_is_not_trusted(capsys):
    fit(Spoiled(lambda: torch.rand(1)))
    assert "3 steps made both ways do not agree" in "".join(capsys.readouterr())


class Breaks(torch.autograd.Function):
    """Fails in the backward pass while a step is recorded: the layers behind it have their gradients by then."""

    recorder = None

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if Breaks.recorder.is_recording:
            raise RuntimeError("not while it is recorded")
        return gradient


class BreaksLate(Net):
    def forward(self, x):
        return self.last(Breaks.apply(self.drop(self.norm(self.first(x)).relu())))


class Knows(Replayer):
    is_recording = False

    def record(self, work):
        self.is_recording = True
        try:
            work()
        finally:
            self.is_recording = False
        return super().record(work)


def test_a_step_that_breaks_off_leaves_no_gradients_behind(capsys):
    Breaks.recorder = Knows()
    captured, eager = fit(Breaks.recorder, model=BreaksLate), fit("eager", model=BreaksLate)
    assert "RuntimeError while a step was recorded: not while it is recorded" in "".join(capsys.readouterr())
    assert_close(captured, eager)


class Failing(Replayer):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_an_error_while_recording_ends_in_the_eager_engine(capsys):
    captured = fit(Failing())
    assert "RuntimeError while a step was recorded: operation not permitted when stream is capturing." in "".join(
        capsys.readouterr()
    )
    assert_close(captured, fit("eager"))


def test_a_loop_of_ones_own_gets_its_losses_at_once():
    recorder = Replayer()
    trainer = make_trainer(recorder)
    for epoch in trainer.epochs(1):
        for batch in epoch.train(make_data(), batch_size=BATCH):
            outcome = trainer.forward(batch)
            assert outcome.loss.requires_grad
            trainer.step(outcome.loss + 0.1 * outcome.output.square().mean())
            trainer.measure(outcome)
    assert recorder.num_recorded == 0
    assert trainer.progress.steps_done == 6


def test_a_second_fit_goes_on():
    recorder = Replayer()
    captured, eager = make_trainer(recorder), make_trainer("eager")
    for trainer in (captured, eager):
        trainer.fit(make_data(), batch_size=BATCH, epochs=1)
        trainer.fit(make_data(), batch_size=BATCH, epochs=2)
    assert_close(captured, eager)
    assert recorder.num_recorded == 2


def test_a_loss_that_is_not_finite_stops_the_run_with_good_weights():
    from velodrome.errors import NumericsError

    x, y = make_data(160)
    batches = [(x[i : i + 16].clone(), y[i : i + 16]) for i in range(0, 160, 16)]
    batches[6][0][0] = torch.inf
    trainer = make_trainer(Replayer(), log_every="100 steps", lr=0.01, model=lambda: nn.Linear(8, 3))
    with pytest.raises(
        NumericsError, match="The training loss became (nan|inf) at step 7 .* The weights are those of step 6"
    ):
        trainer.fit(batches, epochs=1)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


class TimesAll(Callback):
    """Has the bill time every batch, as it does where batches are long."""

    def on_epoch_start(self, trainer):
        trainer._run.clock._every, trainer._run.clock._gap = 1, 0


class GivesUp(TimesAll):
    """A hook on the model: from the next step on nothing is recorded."""

    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 4:  # the first eight batches are timed, the next one is where it ends
            trainer.model.register_forward_hook(lambda *_: None)

    def on_epoch_end(self, trainer, row):
        updates = next(iter(trainer._windows.by_name.values()))
        self.left = [name for name in ("backward", "update") if name in vars(updates)]


def test_recording_that_is_given_up_in_a_timed_batch_leaves_no_method_behind():
    """The bill exchanges `backward` and `update` of timed batches: what it puts back must not be the engine's that gave up."""
    recorder = Replayer()
    gives_up = GivesUp()
    captured, eager = fit(recorder, callbacks=[gives_up]), fit("eager", callbacks=[GivesUp()])

    assert "has hooks" in captured._engine.reason
    assert gives_up.left == []
    assert_close(captured, eager)
    assert recorder.num_replayed == 3 + 1  # compared; step 4
    bill = captured._run.clock.bill
    assert bill.parts["backward"] > 0
    assert bill.parts["optimizer"] > 0


# -- results are read late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [1, 8])
def test_what_guard_means_and_metrics_hold_is_not_written_over(monkeypatch, more):
    """500 steps without a log point; and with limits that somebody has raised."""
    from velodrome.metrics import means, metric_set
    from velodrome.step import guard

    monkeypatch.setattr(metric_set, "MAX_HELD_BATCHES", metric_set.MAX_HELD_BATCHES * more)
    monkeypatch.setattr(means, "MAX_PENDING", means.MAX_PENDING * more)
    monkeypatch.setattr(guard, "NUM_KEPT", guard.NUM_KEPT * more)
    data = make_data(1200)
    results = []
    for engine in (Replayer(), "eager"):
        trainer = make_trainer(engine, model=lambda: nn.Linear(8, 3), log_every="1000 steps", grad_norms=True)
        trainer.fit(data, batch_size=2, epochs=1)
        results.append(trainer.result.metrics)
    one, other = results
    for name in ("train/loss", "train/accuracy", "train/grad_norm"):
        assert one[name] == pytest.approx(other[name], rel=1e-6), name


def test_with_too_few_places_results_would_be_written_over():
    """The negative control: a ring as long as what is held is too short by what is made before it is read."""
    from dataclasses import replace

    trainer = make_trainer(Replayer(), model=lambda: nn.Linear(8, 3), log_every="1000 steps")
    context = trainer._engine._context
    short = replace(context, held=replace(context.held, batches=2, losses=8))
    trainer._engine._steps._context = short
    eager = make_trainer("eager", model=lambda: nn.Linear(8, 3), log_every="1000 steps")
    for each in (trainer, eager):
        each.fit(make_data(1200), batch_size=2, epochs=1)
    assert trainer.result.metrics["train/accuracy"] != eager.result.metrics["train/accuracy"]


def test_graphs_of_eager_steps_are_let_go():
    """Its nodes belong to the stream of the eager step: a recording would meet them there."""

    class Looks(Callback):
        def on_step_end(self, trainer):
            trainer.seen = trainer._engine._eager

    kept = []
    trainer = make_trainer(Replayer())
    forward = trainer.forward

    def remembering(batch):
        kept.append(forward(batch))
        return kept[-1]

    trainer.forward = remembering
    trainer.fit(make_data(), batch_size=BATCH, epochs=1)
    assert len(kept) == 6
    assert [outcome.loss.grad_fn for outcome in kept] == [None] * 6
    assert [outcome.output.grad_fn for outcome in kept] == [None] * 6


# -- evaluation ------------------------------------------------------------------------------------------------------


def evaluated(engine, *, model=None, **arguments):
    """Two epochs with 10 evaluation batches of 9 and one of 5 each."""
    trainer = make_trainer(engine, model=model, **arguments)
    trainer.fit(make_data(), make_data(95), batch_size=BATCH, eval_batch_size=9, epochs=2)
    return trainer


@pytest.mark.parametrize("make_recorder", [Replayer, TapeReplayer])
@pytest.mark.parametrize("arguments", [{}, {"ema": 0.5}, {"precision": "bf16"}, {"metrics": []}])
def test_evaluation_batches_are_replayed_too(make_recorder, arguments):
    recorder = make_recorder()
    captured, eager = evaluated(recorder, **arguments), evaluated("eager", **arguments)
    for one, other in zip(captured.result.history, eager.result.history, strict=True):
        for value in ("val/loss", "val/accuracy"):
            assert one.get(value, 0.0) == pytest.approx(other.get(value, 0.0), rel=1e-4), value
    assert recorder.num_recorded == 2
    # 7 steps and 3 for their comparison; the 10th evaluation batch is compared once, those of the second epoch are replayed.
    assert recorder.num_replayed == 7 + 3 + 1 + 10


class CountsInABuffer(Net):
    """Evaluation changes what comes next; in place, so that it can be recorded, and the comparison must not be counted."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return super().forward(x) * (1 + 0.1 * self.seen)


def test_what_evaluation_changes_in_place_goes_on():
    recorder = Replayer()
    captured, eager = evaluated(recorder, model=CountsInABuffer), evaluated("eager", model=CountsInABuffer)
    assert recorder.num_recorded == 2
    assert captured.model.seen == eager.model.seen == 12 + 22
    assert captured.result.metrics["val/loss"] == pytest.approx(eager.result.metrics["val/loss"], rel=1e-4)


class FailsInEvaluation(Replayer):
    """Breaks off when the work is done, as a device may."""

    def record(self, work):
        if self.num_recorded:
            work()
            raise RuntimeError("the evaluation broke off")
        return super().record(work)


def test_what_a_recording_that_breaks_off_has_changed_is_put_back(tmp_path):
    captured = evaluated(FailsInEvaluation(), model=CountsInABuffer, run_dir=tmp_path / "run", loggers=())
    line = "engine: evaluation is eager instead of captured: RuntimeError: the evaluation broke off."
    assert line in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert captured.model.seen == 12 + 22


class CountsInEvaluation(Counts):
    def forward(self, x):
        self.calls += not self.training
        return Net.forward(self, x) * self.calls


def test_evaluation_that_cannot_be_recorded_is_eager(tmp_path):
    captured = evaluated(Replayer(), model=CountsInEvaluation, run_dir=tmp_path / "run", loggers=())
    eager = evaluated("eager", model=CountsInEvaluation)
    line = "engine: evaluation is eager instead of captured: a forward pass assigns CountsInEvaluation.calls"
    assert line in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert captured.result.metrics["val/loss"] == pytest.approx(eager.result.metrics["val/loss"], rel=1e-4)
    assert captured.model.calls == eager.model.calls == 22
