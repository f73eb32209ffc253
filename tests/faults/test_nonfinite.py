"""FAULTS rows 24 and 25: a loss or a gradient that is NaN or infinite never reaches the weights, whatever the policy."""

import json
import math

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.errors import ArgumentError, NumericsError
from velodrome.nonfinite.bundle import read_bundle

BAD = 3
"""the index of the bad batch"""


class InfiniteGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite where a mark is 7."""

    @staticmethod
    def forward(ctx, x, mark):
        ctx.save_for_backward(mark)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (mark,) = ctx.saved_tensors
        return torch.where(mark == 7.0, torch.inf, gradient), None


class Net(nn.Module):
    """Two layers; a feature of 7 gives a finite loss and an infinite gradient of the scale below them."""

    def __init__(self, batch_norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if batch_norm else nn.Identity()
        self.scale = nn.Parameter(torch.ones(3))
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(InfiniteGradient.apply(x * self.scale, x)))))


def batches(num=8, bad="nan", at=(BAD,), seed=0):
    """Return batches of which some hold NaN, or a 7 that gives an infinite gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(num)]
    for index in at:
        made[index][0][1, 2] = {"nan": math.nan, "gradient": 7.0}[bad]
    return made


def good_batches(num=8, at=(BAD,), **arguments):
    return [batch for index, batch in enumerate(batches(num, at=at, **arguments)) if index not in at]


def make_trainer(model=None, **arguments):
    model = model or Net()
    settings = {
        "optimizer": "adam",
        "lr": 0.01,
        "loss": "mse",
        "device": "cpu",
        "progress": False,
        "log_every": "2 steps",
    }
    return vd.Trainer(model, **{**settings, **arguments})


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# -- stop ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_loss_stops_before_it_reaches_the_weights(optimizer, accumulate, clip_norm, precision):
    switches = {
        "optimizer": optimizer,
        "accumulate": accumulate,
        "clip_norm": clip_norm,
        "precision": precision,
        "ema": 0.9,
    }
    trainer = make_trainer(**switches)
    with pytest.raises(NumericsError, match=r"The training loss became nan at step") as caught:
        trainer.fit(batches(), epochs=1)
    before = make_trainer(**switches)
    done = BAD - BAD % accumulate  # micro-batches of the windows that were closed before it
    before.fit(batches()[:done], epochs=1)
    assert_same(weights(trainer), weights(before))
    assert caught.value.step == done // accumulate + 1
    assert (caught.value.first_kind, caught.value.first_name) == ("input", "batch/0")


def test_negative_control_without_a_guard_the_weights_are_poisoned():
    from velodrome.step.guard import NO_GUARD

    trainer = make_trainer(log_every="1000 steps")
    trainer._run.windows.by_name["optimizer"].guard = NO_GUARD
    with pytest.raises(NumericsError, match="or since the log point before it"):
        trainer.fit(batches(), epochs=1)
    assert not all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_the_error_says_where_what_and_what_next(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[])
    with pytest.raises(NumericsError) as caught:
        trainer.fit(batches(), epochs=1)
    message = str(caught.value)
    for part in (
        "The training loss became nan at step 4 (epoch 1, batch 4, lr 0.01).",
        "Not finite first: the input 'batch/0' (1 NaN of 12 numbers).",
        "The weights are those of step 3",
        str(tmp_path / "run" / "nonfinite" / "step-00000004"),
        'velodrome.replay("',
    ):
        assert part in message
    assert (caught.value.epoch, caught.value.batch_number, caught.value.lr, caught.value.value) == (1, 4, 0.01, "nan")


def test_samples_are_named_where_the_order_is_known(tmp_path):
    model = Net()
    with torch.no_grad():
        model.first.weight.fill_(1e30)

    def overflows(output, target):
        return (output * target * 1e38).mean()

    x, y = torch.ones(8, 3), torch.arange(8.0).reshape(8, 1) * 1e3
    trainer = make_trainer(model, loss=overflows, seed=3)
    with pytest.raises(NumericsError, match=r"samples \d, \d, \d, \d, lr") as caught:
        trainer.fit((x, y), batch_size=4, epochs=1)
    order = torch.randperm(8, generator=vd.data.order.epoch_generator(3, 0, "order")).tolist()
    assert caught.value.samples == order[:4]
    assert caught.value.first_kind == "loss"


def test_a_learning_rate_that_is_too_large_is_found_at_the_next_loss():
    trainer = make_trainer(optimizer="sgd", lr=1e30, log_every="1000 steps")
    with pytest.raises(NumericsError, match=r"became (nan|inf) at step \d") as caught:
        trainer.fit(batches(at=()), epochs=5)
    assert caught.value.step <= 4
    assert "lr 1e+30" in str(caught.value)


@pytest.mark.parametrize("clip", [{"clip_norm": 1.0}, {"clip_value": 0.1}, {"grad_norms": True}])
def test_a_bad_gradient_stops_before_the_update_where_a_norm_is_measured(clip):
    trainer = make_trainer(log_every="1000 steps", **clip)
    with pytest.raises(
        NumericsError, match=r"The gradient norm became (inf|nan) at step 4 .*the gradient of 'scale'"
    ) as caught:
        trainer.fit(batches(bad="gradient"), epochs=1)
    before = make_trainer(**clip)
    before.fit(batches()[:BAD], epochs=1)
    assert_same(weights(trainer), weights(before))
    assert caught.value.first_name == "scale"


def test_a_bad_gradient_stops_at_once_right_after_a_log_point_and_at_the_next_loss_elsewhere():
    at_once = make_trainer(log_every="3 steps")
    with pytest.raises(NumericsError, match="A gradient became inf at step 4 .*the gradient of 'scale'"):
        at_once.fit(batches(bad="gradient"), epochs=1)
    assert all(torch.isfinite(value).all() for value in weights(at_once).values())
    later = make_trainer(log_every="1000 steps")
    with pytest.raises(
        NumericsError, match="loss became nan at step 5 .*the weight 'scale'.* an update before this one"
    ):
        later.fit(batches(bad="gradient"), epochs=1)


def test_a_mean_of_no_items_is_not_looked_at():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for index, (x, y) in enumerate(epoch.train(batches(at=()))):
            none = index == 2
            loss = nn.functional.mse_loss(trainer.model(x), y)
            trainer.step(loss * (math.nan if none else 1.0), items=0 if none else 4)
    assert math.isfinite(trainer.result.metrics["train/loss"])


def test_nothing_bad_is_ever_saved(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[], checkpoint="every step")
    with pytest.raises(NumericsError):
        trainer.fit(batches(), epochs=1)
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps[-1] == "step-00000003"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_loader_that_is_a_generator_is_guarded_too():
    trainer = make_trainer(optimizer="sgd")
    with pytest.raises(NumericsError, match=r"step 4 \(epoch 1, batch 4"):
        trainer.fit(iter(batches()), epochs=1)


def test_a_loop_of_ones_own_stops_like_fit():
    trainer = make_trainer()
    with pytest.raises(NumericsError, match="loss became nan at step 4"):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train(batches()):
                trainer.step(nn.functional.mse_loss(trainer.model(x), y))


def test_fp16_skips_as_it_always_did():
    with pytest.raises(ArgumentError, match=r'"rollback" was given with precision="fp16".*Use "stop" or "skip"'):
        make_trainer(precision="fp16", on_nonfinite="rollback")
    results = []
    for policy in ("stop", "skip"):
        trainer = make_trainer(precision="fp16", on_nonfinite=policy)
        trainer.fit(batches(), epochs=1)
        results.append(weights(trainer))
        assert trainer.progress.steps_done == 8
        assert trainer.result.metrics["skipped_steps"] >= 1
    assert_same(*results)


def test_a_policy_that_is_unknown_is_refused():
    with pytest.raises(ArgumentError, match=r'on_nonfinite=.skipp. is unknown. Did you mean "skip"'):
        make_trainer(on_nonfinite="skipp")


# -- skip ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nan", "gradient"])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"clip_norm": 0.5},
        {"clip_value": 0.1, "clip_norm": 0.5, "grad_norms": True},
        {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}, "ema": 0.9},
        {"scheduler": "cosine", "scheduler_args": {"length": "20 steps", "warmup": "2 steps"}},
        {"precision": "bf16"},
        {"metrics": {"size": lambda output, target: output.abs().squeeze(1)}},
    ],
    ids=lambda switches: "-".join(switches) or "plain",
)
def test_a_skipped_batch_leaves_the_weights_of_a_run_without_it(bad, switches):
    trainer = make_trainer(on_nonfinite="skip", **switches)
    trainer.fit(batches(bad=bad), epochs=1)
    without = make_trainer(**switches)
    without.fit(good_batches(), epochs=1)
    assert_same(weights(trainer), weights(without))
    assert trainer.progress.steps_done == without.progress.steps_done == 7
    assert trainer.optimizer.param_groups[0]["lr"] == without.optimizer.param_groups[0]["lr"]
    assert_same(dict(trainer.averaging.state_dict()), dict(without.averaging.state_dict()))
    row, other = trainer.result.metrics, without.result.metrics
    assert row["skipped_steps"] == 1
    assert "skipped_steps" not in other
    if bad == "nan":  # what was measured before a gradient is known to be bad was measured
        assert row["train/loss"] == other["train/loss"]
    if "metrics" in switches:
        assert row["train/size"] == other["train/size"]


@pytest.mark.parametrize("bad_at", [(0,), (3,), (4,), (7,), (2, 3)])
def test_a_skipped_micro_batch_has_no_place_in_its_window(bad_at):
    trainer = make_trainer(on_nonfinite="skip", accumulate=3)
    trainer.fit(batches(at=bad_at), epochs=2)
    without = make_trainer(accumulate=3)
    without.fit(good_batches(at=bad_at), epochs=2)
    assert_same(weights(trainer), weights(without))
    assert trainer.result.metrics["train/loss"] == without.result.metrics["train/loss"]


def test_batch_norm_forgets_a_skipped_batch():
    trainer = make_trainer(Net(batch_norm=True), on_nonfinite="skip")
    trainer.fit(batches(at=(0, 3)), epochs=2)
    without = make_trainer(Net(batch_norm=True))
    without.fit(good_batches(at=(0, 3)), epochs=2)
    assert_same(weights(trainer), weights(without))


def test_each_optimizer_of_several_skips_its_own():
    def train(data, **arguments):
        torch.manual_seed(0)
        model = nn.ModuleDict({"one": nn.Linear(3, 1), "two": nn.Linear(3, 1)})
        trainer = vd.Trainer(model, {"one": "sgd", "two": "adam"}, lr=0.01, device="cpu", progress=False, **arguments)
        for epoch in trainer.epochs(1):
            for x, y in epoch.train(data):
                for name in ("one", "two"):
                    used = x.nan_to_num() if name == "two" and arguments else x
                    trainer.step(nn.functional.mse_loss(model[name](used), y), optimizer=name)
        return trainer

    trainer = train(batches(), on_nonfinite="skip")
    assert trainer.progress.steps_done == 7 + 8
    without = train(good_batches())
    assert torch.equal(trainer.model["one"].weight, without.model["one"].weight)
    assert not torch.equal(trainer.model["two"].weight, without.model["two"].weight)


def test_a_line_names_each_skipped_step(capsys):
    make_trainer(on_nonfinite="skip").fit(batches(at=(2, 5)), epochs=1)
    said = capsys.readouterr().err
    assert "loss became nan at step 3 (epoch 1, batch 3" in said
    assert "at step 5 (epoch 1, batch 6" in said
    assert said.count("This batch is skipped.") == 2


@pytest.mark.parametrize(("bad", "what"), [("nan", "loss became nan"), ("gradient", "A gradient became inf")])
def test_ten_in_a_row_stop_and_nine_do_not(bad, what):
    make_trainer(on_nonfinite="skip").fit(batches(30, bad=bad, at=(*range(3, 12), *range(13, 22))), epochs=1)
    trainer = make_trainer(on_nonfinite="skip")
    with pytest.raises(NumericsError, match=f"{what} at step 4 .*number 10 in a row: skipping does not help"):
        trainer.fit(batches(30, bad=bad, at=range(3, 13)), epochs=1)
    assert trainer.progress.steps_done == 3


# -- rollback -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches", [{}, {"ema": 0.9, "scheduler": "linear", "scheduler_args": {"length": "20 steps"}}]
)
@pytest.mark.parametrize("bad", ["nan", "gradient"])
def test_rollback_goes_back_to_the_last_good_log_point_and_on_with_the_data(bad, switches, capsys):
    # Log points after steps 2 and 4; batch 5 (index) is bad in step 6: back to step 4, on with batches 6 and 7.
    trainer = make_trainer(on_nonfinite="rollback", **switches)
    trainer.fit(batches(bad=bad, at=(5,)), epochs=1)
    data = batches(at=())
    without = make_trainer(**switches)
    without.fit([*data[:4], *data[6:]], epochs=1)
    assert_same(weights(trainer), weights(without))
    assert_same(dict(trainer.averaging.state_dict()), dict(without.averaging.state_dict()))
    assert trainer.optimizer.param_groups[0]["lr"] == without.optimizer.param_groups[0]["lr"]
    assert trainer.progress.steps_done == 7  # updates made, also the one that was undone
    assert "go back from step 5 to step 4" in capsys.readouterr().err


def test_rollback_before_the_first_log_point_goes_back_to_the_start():
    trainer = make_trainer(on_nonfinite="rollback", log_every="100 steps", accumulate=2)
    trainer.fit(batches(at=(3,)), epochs=1)
    without = make_trainer(accumulate=2)
    without.fit(batches()[4:], epochs=1)
    assert_same(weights(trainer), weights(without))


def test_three_rollbacks_without_a_good_log_point_stop():
    trainer = make_trainer(on_nonfinite="rollback", log_every="3 steps")
    with pytest.raises(NumericsError, match="number 3 since the last good log point: going back does not help"):
        trainer.fit(batches(at=(3, 4, 5)), epochs=1)
    make_trainer(on_nonfinite="rollback", log_every="1 steps").fit(batches(at=(1, 3, 5, 7)), epochs=1)


def test_rollback_is_refused_where_nothing_can_be_put_back():
    class ScheduleFree(torch.optim.SGD):
        def train(self):
            pass

        def eval(self):
            pass

    model = Net()
    with pytest.raises(ArgumentError, match='"rollback" was given with an optimizer that shows other weights'):
        make_trainer(model, optimizer=ScheduleFree(model.parameters(), lr=0.1), lr=None, on_nonfinite="rollback")


def test_rollback_of_a_lazy_model_has_nothing_to_go_back_to_before_its_first_log_point():
    trainer = make_trainer(nn.LazyLinear(1), optimizer="sgd", on_nonfinite="rollback", log_every="3 steps")
    with pytest.raises(NumericsError, match="There was no good log point yet"):
        trainer.fit(batches(at=(1,)), epochs=1)
    make_trainer(nn.LazyLinear(1), optimizer="sgd", on_nonfinite="rollback", log_every="3 steps").fit(
        batches(at=(4,)), epochs=1
    )


def test_nothing_is_said_of_fp16_where_there_is_none(capsys):
    trainer = make_trainer(on_nonfinite="skip", progress=True)
    trainer.fit(batches(), epochs=1)
    captured = capsys.readouterr()
    assert "fp16" not in captured.out + captured.err


def test_eject_refuses_a_policy_by_name():
    from velodrome.errors import RecipeError
    from velodrome.recipes.eject.refuse import check_can_be_ejected
    from velodrome.recipes.read import load_recipe

    with pytest.raises(RecipeError, match=r"train.on_nonfinite='skip' cannot be ejected"):
        check_can_be_ejected(load_recipe("mnist-mlp", ['train.on_nonfinite="skip"']).recipe)


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_the_bundle_holds_what_led_there(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[])
    with pytest.raises(NumericsError):
        trainer.fit(batches(), epochs=1)
    folder = tmp_path / "run" / "nonfinite" / "step-00000004"
    assert {path.name for path in folder.iterdir()} == {
        "nonfinite.json", "batch.safetensors", "model.safetensors", "random.safetensors",
    }  # fmt: skip
    bundle = read_bundle(folder)
    for kept, given in zip(bundle.batch, batches()[BAD], strict=True):
        torch.testing.assert_close(kept, given, rtol=0, atol=0, equal_nan=True)
    assert_same(dict(bundle.weights), weights(trainer))
    facts = {
        "step": 4,
        "epoch": 1,
        "batch_number": 4,
        "lr": 0.01,
        "value": "nan",
        "first_kind": "input",
        "policy": "stop",
    }
    assert bundle.facts.items() >= facts.items()


def test_at_most_three_bundles_a_run(tmp_path):
    make_trainer(run_dir=tmp_path / "run", loggers=[], on_nonfinite="skip").fit(batches(at=(1, 2, 3, 5, 7)), epochs=1)
    folders = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert folders == ["step-00000002", "step-00000003", "step-00000004"] or len(folders) <= 3


def test_without_a_run_dir_nothing_is_kept_and_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NumericsError, match="With run_dir= the batch would have been kept"):
        make_trainer().fit(batches(), epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_finds_the_module(tmp_path):
    class Logs(nn.Module):
        def forward(self, x):
            return torch.log(x)

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Logs(), nn.Linear(3, 1))

    trainer = make_trainer(make(), run_dir=tmp_path / "run", loggers=[])
    with pytest.raises(NumericsError) as caught:
        trainer.fit(batches(at=()), epochs=5)
    found = vd.replay(caught.value.bundle, make(), loss="mse", device="cpu")
    assert (found.fault.module, found.fault.kind, found.step) == ("2", "output", caught.value.step)
    assert found.fault.num_infinite > 0
    assert "Not finite first: 2: output" in str(found)


def test_a_gradient_is_traced_to_its_module(tmp_path):
    trainer = make_trainer(run_dir=tmp_path / "run", loggers=[], clip_norm=1.0)
    with pytest.raises(NumericsError) as caught:
        trainer.fit(batches(bad="gradient"), epochs=1)
    found = vd.replay(caught.value.bundle, Net(), loss="mse", device="cpu")
    assert (found.fault.module, found.fault.kind, found.fault.tensor) == ("Net", "gradient", "gradient of the scale")
    assert math.isfinite(found.loss)


# -- going on ------------------------------------------------------------------------------------------------------------


class Leaves(vd.Callback):
    """Raises after a step, as a crash does."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, trainer):
        if trainer.progress.steps_done == self.at:
            raise RuntimeError("crash")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("crash_at", [4, 5, 6, 9])
def test_a_run_that_goes_on_ends_like_the_one_that_never_stopped(tmp_path, policy, crash_at):
    def run(name, callbacks=()):
        trainer = make_trainer(
            run_dir=tmp_path / name, resume="auto", loggers=[], checkpoint="every step", on_nonfinite=policy, seed=1, ema=0.9,
            log_every="3 steps", callbacks=callbacks, accumulate=1,
        )  # fmt: skip
        return trainer, trainer.fit(batches(bad="gradient", at=(2, 5)), epochs=2)

    straight, result = run("straight")
    with pytest.raises(RuntimeError, match="crash"):
        run("cut", [Leaves(crash_at)])
    resumed, other = run("cut")
    assert_same(weights(straight), weights(resumed))
    assert_same(dict(straight.averaging.state_dict()), dict(resumed.averaging.state_dict()))
    clocks = ("seconds", "samples_per_s")
    rows = [
        [{key: value for key, value in row.items() if key not in clocks} for row in each.history]
        for each in (result, other)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("forgets", [False, True], ids=["", "negative-control"])
@pytest.mark.parametrize(
    ("policy", "at", "message"),
    [
        (
            "skip",
            (*range(5), *range(8, 13)),
            "number 10 in a row",
        ),  # five at the end of an epoch, five at the start of the next
        ("rollback", (5, 6), "number 3 since the last good log point"),  # two in an epoch, one in the next
    ],
)
def test_what_is_counted_in_a_row_is_counted_across_a_resume(tmp_path, policy, at, message, forgets):
    def run(epochs):
        trainer = make_trainer(
            run_dir=tmp_path / "run", resume="auto", loggers=[], on_nonfinite=policy, seed=1, log_every="1000 steps",
        )  # fmt: skip
        if forgets:
            trainer._run.nonfinite.load_state_dict = lambda state: None
        trainer.fit(batches(13, at=at), epochs=epochs)

    run(1)
    if forgets:
        run(2)
    else:
        with pytest.raises(NumericsError, match=message):
            run(2)


# -- several processes ---------------------------------------------------------------------------------------------------


def train_in_process(policy, bad, accumulate):
    """Train on sixteen batches, dealt out in turn, of which the fourth of rank 1 is bad; return what came of it."""
    data = batches(16, bad=bad, at=(2 * BAD + 1,))
    torch.manual_seed(0)
    trainer = make_trainer(Net(), on_nonfinite=policy, accumulate=accumulate, log_every="2 steps")
    try:
        trainer.fit(data, epochs=1)
        error = ""
    except NumericsError as raised:
        error = str(raised)
    return {
        "error": error, "weights": weights(trainer), "steps": trainer.progress.steps_done,
        "skipped": trainer.result.metrics.get("skipped_steps"),
    }  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_processes_stop_together_and_say_whose_loss_it_was(two, accumulate):
    told = two.run(train_in_process, "stop", "nan", accumulate)
    for each in told:
        assert "The training loss became nan" in each["error"]
        assert "rank 1" in each["error"]
        assert "the input 'batch/0'" in each["error"]
        assert each["steps"] == BAD // accumulate
        assert all(torch.isfinite(value).all() for value in each["weights"].values())
    assert_same(told[0]["weights"], told[1]["weights"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_loss_of_one_process_is_skipped_and_the_others_go_on(two, accumulate):
    told = two.run(train_in_process, "skip", "nan", accumulate)
    for each in told:
        assert (each["error"], each["steps"], each["skipped"]) == ("", 8 // accumulate, 1)
        assert_same(each["weights"], told[0]["weights"])
    if accumulate == 1:
        assert_close(told[0]["weights"], weights(trained_like_two_processes()))


def test_a_bad_gradient_of_one_process_skips_the_update_of_all(two):
    told = two.run(train_in_process, "skip", "gradient", 1)
    for each in told:
        assert (each["error"], each["steps"], each["skipped"]) == ("", 7, 1)
        assert_same(each["weights"], told[0]["weights"])
    assert_close(told[0]["weights"], weights(trained_like_two_processes(leave_out=True)))


@pytest.mark.parametrize("bad", ["nan", "gradient"])
def test_all_processes_roll_back_together(two, bad):
    told = two.run(train_in_process, "rollback", bad, 1)
    for each in told:  # the bad update is the fourth: back to the log point after the second
        assert (each["error"], each["steps"]) == ("", 7)
        assert_same(each["weights"], told[0]["weights"])
        assert all(torch.isfinite(value).all() for value in each["weights"].values())


def trained_like_two_processes(leave_out=False):
    """Train in one process on the batches of both: where rank 1's is bad on rank 0's alone, or on neither."""
    data, dealt = [], batches(16, at=())
    for index, (one, other) in enumerate(zip(dealt[::2], dealt[1::2], strict=True)):
        if index != BAD:
            data.append(tuple(torch.cat(parts) for parts in zip(one, other, strict=True)))
        elif not leave_out:
            data.append(one)
    trainer = make_trainer(Net())
    trainer.fit(data, epochs=1)
    return trainer


def assert_close(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6, msg=name)
