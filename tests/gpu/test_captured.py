"""The captured engine with real CUDA graphs."""

import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

NUM, BATCH = 330, 32  # 10 full batches and one of 10 samples an epoch
CLASSES = 3
FIRST, LAST = 6, 43  # steps between which nothing may wait: after the recording, before the last of 44


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.cuda.set_sync_debug_mode("default")


def mlp(*, norm=False, dropout=False):
    layers = [nn.Linear(8, 32, bias=not norm), nn.ReLU()]
    if norm:  # the layer before it has no bias, whose gradient would be rounding alone
        layers.insert(1, nn.BatchNorm1d(32))
    if dropout:
        layers.append(nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


def make_data(num=NUM):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num, 8, generator=generator), torch.randint(0, CLASSES, (num,), generator=generator)


def make_trainer(engine, *, build=mlp, optimizer="adam", run_dir=None, **arguments):
    torch.manual_seed(1)
    more = {
        "loss": "cross_entropy",
        "lr": 0.01,
        "metrics": ["accuracy"],
        "seed": 3,
        "log_every": "1000 steps",
        **arguments,
    }
    if run_dir is not None:
        more |= {"loggers": ()}
    return Trainer(build(), optimizer, device="cuda", engine=engine, progress=False, run_dir=run_dir, **more)


def fit(engine, *, epochs=3, **arguments):
    trainer = make_trainer(engine, **arguments)
    trainer.fit(make_data(), make_data(100), batch_size=BATCH, epochs=epochs)
    return trainer


def is_captured(trainer):
    return not trainer._engine.reason and trainer._engine._has_said


def assert_close(one, other, tolerance=1e-4):
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance), (
            f"{name}: {(a - b).abs().max():g}"
        )


def same_bits(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


SWITCHES = {
    "adam": {},
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "optimizer_args": {"momentum": 0.9}},
    "dropout": {"build": lambda: mlp(dropout=True)},
    "BatchNorm": {"build": lambda: mlp(norm=True)},
    "both": {"build": lambda: mlp(norm=True, dropout=True)},
    "schedule": {"scheduler": "cosine", "scheduler_args": {"warmup": 5}},
    "torch's schedule": {"scheduler": "steplr", "scheduler_args": {"step_size": 1, "gamma": 0.1}},
    "clipping": {"clip_norm": 0.1, "grad_norms": True},
    "clipping by value": {"clip_value": 0.01},
    "ema": {"ema": 0.9},
    "no metrics": {"metrics": []},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_replayed_steps_end_where_eager_ones_do(name):
    captured, eager = fit("captured", **SWITCHES[name]), fit("eager", **SWITCHES[name])
    assert is_captured(captured), captured._engine.reason
    assert_close(captured, eager)
    for one, other in zip(captured.result.history, eager.result.history, strict=True):
        for value in ("train/loss", "train/accuracy", "train/grad_norm", "val/loss", "val/accuracy", "lr"):
            assert one.get(value, 0.0) == pytest.approx(other.get(value, 0.0), rel=1e-3, abs=1e-6), value


def test_bf16_learns_as_eager_bf16_does():
    captured, eager = fit("captured", precision="bf16"), fit("eager", precision="bf16")
    assert is_captured(captured), captured._engine.reason
    assert_close(captured, eager, tolerance=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions(precision):
    def build():
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(128, CLASSES),
        )  # fmt: skip

    generator = torch.Generator().manual_seed(5)
    data = torch.randn(NUM, 16, generator=generator), torch.randint(0, CLASSES, (NUM,), generator=generator)
    trainers = []
    for engine in ("captured", "eager"):
        trainers.append(
            make_trainer(engine, build=build, precision=precision, optimizer="sgd", lr=0.05, channels_last="auto")
        )
        trainers[-1].fit(data, batch_size=BATCH, epochs=3)
    assert is_captured(trainers[0]), trainers[0]._engine.reason
    assert_close(*trainers, tolerance=1e-3 if precision == "fp32" else 0.05)


class ForbidsWaits(Callback):
    def on_step_end(self, trainer):
        steps = trainer.progress.steps_done
        if steps == FIRST:
            torch.cuda.set_sync_debug_mode("error")
        elif steps == LAST:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "arguments", [{}, {"scheduler": "cosine"}, {"clip_norm": 1.0}, {"ema": 0.99}, {"precision": "bf16"}]
)
def test_no_replay_waits(arguments):
    x, y = make_data(44 * BATCH)
    trainer = make_trainer("captured", callbacks=[ForbidsWaits()], **arguments)
    trainer.fit((x, y), batch_size=BATCH, epochs=1)
    assert is_captured(trainer), trainer._engine.reason
    assert trainer.progress.steps_done == 44


def test_the_odd_last_batch_shares_weights_and_state():
    """Its step changes what the next replay begins with."""
    one, other = fit("captured", epochs=4), fit("eager", epochs=4)
    assert is_captured(one), one._engine.reason
    assert one.progress.steps_done == other.progress.steps_done == 44
    assert_close(one, other)


@pytest.mark.parametrize("step", [2, 5, 11, 16])
@pytest.mark.parametrize("norm", [False, True])
def test_a_run_interrupted_between_replays_ends_like_the_one_that_was_not(tmp_path, step, norm):
    build = (lambda: mlp(norm=True, dropout=True)) if norm else mlp
    data = make_data()
    switches = {"build": build, "scheduler": "cosine", "checkpoint": f"{step} steps"}
    straight = make_trainer("captured", run_dir=tmp_path / "a", **switches)
    straight.fit(data, batch_size=BATCH, epochs=3)

    class Stops(Callback):
        def on_checkpoint(self, trainer, path):
            if trainer.progress.steps_done == step:
                raise RuntimeError("stop here")

    first = make_trainer("captured", run_dir=tmp_path / "b", callbacks=[Stops()], **switches)
    with pytest.raises(RuntimeError, match="stop here"):
        first.fit(data, batch_size=BATCH, epochs=3)
    resumed = make_trainer("captured", run_dir=tmp_path / "b", resume="auto", **switches)
    resumed.fit(data, batch_size=BATCH, epochs=3)

    assert is_captured(resumed), resumed._engine.reason
    assert same_bits(straight, resumed)


def test_a_run_goes_on_with_the_eager_engine(tmp_path):
    data = make_data()
    straight = make_trainer("captured")
    straight.fit(data, batch_size=BATCH, epochs=2)
    first = make_trainer("captured", run_dir=tmp_path / "b")
    first.fit(data, batch_size=BATCH, epochs=1)
    resumed = make_trainer("eager", run_dir=tmp_path / "b", resume="auto")
    resumed.fit(data, batch_size=BATCH, epochs=2)
    assert_close(straight, resumed)


class Waits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.layer(x) * (2.0 if self.training and x.sum().item() > 1e9 else 1.0)


class DrawsOnTheCPU(Waits):
    def forward(self, x):
        return self.layer(x) + torch.rand(()).to(x.device, non_blocking=True)


class Branches(Waits):
    """Another number of rows goes through the layer each time: its size is read."""

    def forward(self, x):
        return self.layer(x) + self.layer(x[x[:, 0] > 0]).mean()


def hooked():
    model = mlp()
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"build": Waits}, "a step waits for the device"),
        ({"build": Branches}, "a step waits for the device"),
        ({"build": DrawsOnTheCPU}, "a step draws from the CPU's generator"),
        ({"build": hooked}, "has hooks"),
        ({"accumulate": 2}, "2 micro-batches"),
        ({"precision": "fp16"}, "fp16"),
        ({"optimizer": "rmsprop"}, "no fused version"),
        ({"on_nonfinite": "skip"}, "reads every loss"),
    ],
)
def test_what_cannot_be_recorded_runs_eagerly_and_says_so(capsys, arguments, reason):
    trainer = fit("captured", **arguments)
    shown = "".join(capsys.readouterr())
    assert "engine: eager instead of captured: " in shown
    assert reason in shown
    assert trainer.progress.epochs_done == 3
    assert torch.ones(3, device="cuda").sum().item() == 3


class Unrecordable(nn.Module):
    """A wait that torch's debug mode does not see is found by the recording itself, and the device lives on."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(8, CLASSES), nn.Dropout(0.3)

    def forward(self, x):
        x = self.drop(x)  # draws before the recording breaks off, and in all steps after it
        if self.training:
            torch.cuda.current_stream().synchronize()
        return self.layer(x)


def test_a_recording_that_fails_leaves_a_device_that_works(capsys):
    captured, eager = fit("captured", build=Unrecordable), fit("eager", build=Unrecordable)
    assert "engine: eager instead of captured: " in "".join(capsys.readouterr())
    assert_close(captured, eager)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()

    again = fit("captured", build=lambda: mlp(dropout=True))
    assert is_captured(again), again._engine.reason
    assert_close(again, fit("eager", build=lambda: mlp(dropout=True)))


class BreaksInside(Unrecordable):
    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            self.drop(x)
            raise ValueError("this is what went wrong")
        return self.layer(self.drop(x))


def test_the_error_that_is_shown_is_the_one_that_broke_the_recording_off(capsys):
    captured, eager = fit("captured", build=BreaksInside), fit("eager", build=BreaksInside)
    assert "ValueError while a step was recorded: this is what went wrong" in "".join(capsys.readouterr())
    assert_close(captured, eager)


class BreaksInEvaluation(nn.Sequential):
    def forward(self, x):
        if not self.training:
            torch.cuda.current_stream().synchronize()
        return super().forward(x)


def test_a_recording_of_an_evaluation_that_fails_leaves_the_steps_recorded():
    """The generator is the one that the steps were recorded with: dropout goes on as in the eager engine."""
    trainers = []
    for engine in ("captured", "eager"):
        trainers.append(make_trainer(engine, build=lambda: BreaksInEvaluation(*mlp(dropout=True))))
        trainers[-1].fit(make_data(), make_data(1005), batch_size=BATCH, eval_batch_size=100, epochs=3)
    assert is_captured(trainers[0]), trainers[0]._engine.reason
    assert trainers[0]._engine._evaluation.reason
    assert_close(*trainers)


def test_a_loss_that_is_not_finite_stops_the_run_with_good_weights():
    from velodrome.errors import NumericsError

    x, y = make_data(320)
    x[200] = torch.inf
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 320, 32)]
    trainer = make_trainer("captured", log_every="100 steps")
    with pytest.raises(NumericsError, match="at step 7"):
        trainer.fit(batches, epochs=1)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


class LoadsOptimizer(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 12:
            trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())


class ChangesOption(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 12:
            trainer.optimizer.param_groups[0]["weight_decay"] = 0.5


class FreezesLayer(Callback):
    def on_epoch_start(self, trainer):
        trainer.model[0].requires_grad_(trainer.progress.epochs_done == 0)


class Evaluates(Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done % 5 == 0:
            trainer.evaluate(make_data(40), batch_size=20)


@pytest.mark.parametrize("change", [LoadsOptimizer, ChangesOption, FreezesLayer, Evaluates])
def test_what_a_callback_changes_is_recorded_anew(change):
    captured, eager = fit("captured", callbacks=[change()]), fit("eager", callbacks=[change()])
    assert is_captured(captured), captured._engine.reason
    assert_close(captured, eager)


# -- evaluation ------------------------------------------------------------------------------------------------------


class Counting:
    """CUDA graphs, counted: what the trainer says of itself is not enough to know that evaluation was replayed."""

    def __init__(self):
        from velodrome.step.capture.graphs import CudaGraphs

        self.inner = CudaGraphs(torch.device("cuda"))
        self.num_recorded = self.num_replayed = 0
        self.on_side, self.noting_waits = self.inner.on_side, self.inner.noting_waits

    def record(self, work):
        self.num_recorded += 1
        inner = self.inner.record(work)

        def replay():
            self.num_replayed += 1
            inner()

        return replay


@pytest.mark.parametrize(
    "arguments", [{}, {"ema": 0.9}, {"precision": "bf16"}, {"build": lambda: mlp(norm=True, dropout=True)}]
)
def test_evaluation_batches_are_replayed_too(arguments):
    recorder = Counting()
    trainers = []
    for engine in (recorder, "eager"):
        trainers.append(make_trainer(engine, **arguments))
        trainers[-1].fit(make_data(), make_data(1005), batch_size=BATCH, eval_batch_size=100, epochs=3)
    assert recorder.num_recorded == 2
    # 33 steps: 3 of warm-up, 3 odd last ones, 27 replays and 3 compared; evaluation: 1 compared, 10 in each of 2 epochs.
    assert recorder.num_replayed == 27 + 3 + 1 + 20
    for one, other in zip(trainers[0].result.history, trainers[1].result.history, strict=True):
        assert one["val/loss"] == pytest.approx(other["val/loss"], rel=1e-2 if arguments.get("precision") else 1e-4)
        assert one["val/accuracy"] == pytest.approx(other["val/accuracy"], abs=0.01)
