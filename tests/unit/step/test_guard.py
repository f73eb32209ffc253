"""Guards: what is looked at, when, and what the weights are afterwards."""

import math

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.errors import NumericsError
from velodrome.step.guard import FlagGuard, Guard, NonFinite, ReadGuard, first_non_finite, make_guard

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def parameter(*gradient, dtype=torch.float32):
    made = nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    made.grad = torch.tensor(gradient, dtype=dtype)
    return made


# -- reading at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(NonFinite) as caught:
        ReadGuard().check_loss(torch.tensor(value), 4.0)
    assert caught.value.place == "loss"
    assert str(caught.value.value) == str(value)


@pytest.mark.parametrize("items", [4.0, torch.tensor(4)])
def test_a_finite_loss_passes_with_a_graph_behind_it(items):
    ReadGuard().check_loss(nn.Parameter(torch.ones(2)).sum(), items)
    ReadGuard().check_loss(torch.tensor([3e38]), items)


def test_the_mean_of_no_items_is_no_loss():
    ReadGuard().check_loss(torch.tensor(NAN), torch.tensor(0))
    with pytest.raises(NonFinite):
        ReadGuard().check_loss(torch.tensor(NAN), torch.tensor(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_the_first_bad_gradient_is_named_whatever_its_type(dtype, bad):
    held = [parameter(1.0), parameter(2.0, 3.0, dtype=dtype), parameter(1.0, bad, dtype=dtype), parameter(bad)]
    with pytest.raises(NonFinite) as caught:
        ReadGuard().check_gradients(held)
    assert caught.value.parameter is held[2]
    assert first_non_finite(held[:2]) is None


def test_gradients_that_are_finite_are_not_changed():
    held = [parameter(1.5, -0.0, 3e38), parameter(1e-45, dtype=torch.float64), nn.Parameter(torch.ones(1))]
    kept = [None if each.grad is None else each.grad.clone() for each in held]
    ReadGuard().check_gradients(held)
    for each, before in zip(held, kept, strict=True):
        assert (each.grad is None) == (before is None)
        assert before is None or torch.equal(each.grad, before)
    assert math.copysign(1, held[0].grad[1]) == -1


def test_a_sparse_gradient_is_looked_at():
    table = nn.Embedding(4, 2, sparse=True)
    (table(torch.tensor([1])).sum() * NAN).backward()
    with pytest.raises(NonFinite) as caught:
        ReadGuard().check_gradients([table.weight])
    assert caught.value.parameter is table.weight


def test_gradients_are_looked_at_once_a_log_point_or_always():
    seldom, always = ReadGuard(), ReadGuard(every_update=True)
    for guard in (seldom, always):
        assert guard.looks_at_gradients
        guard.check_gradients([parameter(1.0)])
    assert (seldom.looks_at_gradients, always.looks_at_gradients) == (False, True)


def test_a_norm_that_overflows_has_no_parameter_to_blame():
    with pytest.raises(NonFinite) as caught:
        ReadGuard().check_norm(torch.tensor(INF), [parameter(3e38)])
    assert (caught.value.place, caught.value.parameter) == ("gradient norm", None)


@pytest.mark.parametrize(("goes_on", "items", "stops"), [(False, 8.0, True), (True, 8.0, False), (True, 0.0, True)])
def test_a_flag_of_another_process_stops_unless_the_policy_goes_on_with_the_rest(goes_on, items, stops):
    guard = ReadGuard(goes_on=goes_on)
    told = []
    guard.on_flags = told.append
    flags = torch.tensor(2.0, dtype=torch.float64)
    if stops:
        with pytest.raises(NonFinite, match="elsewhere"):
            guard.check_others(flags, torch.tensor(items))
    else:
        guard.check_others(flags, torch.tensor(items))
        assert told == [2]
    guard.check_others(torch.tensor(0.0), torch.tensor(items))


# -- a flag on the device, here the CPU: torch's fused optimizers take it there too ---------------------------------------


OPTIMIZERS = {
    "sgd": lambda parameters, **more: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **more),
    "adam": lambda parameters, **more: torch.optim.Adam(parameters, lr=0.1, **more),
    "adamw": lambda parameters, **more: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, **more),
}


def flagged_trainer(make, *, waits, **arguments):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = make(model.parameters(), fused=not waits)
    trainer = vd.Trainer(model, optimizer, loss="mse", device="cpu", progress=False, **arguments)
    for updates in trainer._windows.by_name.values():
        updates.guard = FlagGuard(optimizer, CPU, waits=waits)
    return trainer


def batches(bad_at=()):
    generator = torch.Generator().manual_seed(1)
    made = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(9)]
    for index in bad_at:
        made[index][0][0, 0] = NAN
    return made


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("waits", [False, True], ids=["fused", "waits"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_flag_keeps_every_later_update_from_changing_anything(make, waits, accumulate):
    trainer = flagged_trainer(make, waits=waits, accumulate=accumulate, log_every="1000 steps")
    with pytest.raises(NumericsError, match=rf"The training loss became nan at step {6 // accumulate + 1} ") as caught:
        trainer.fit(batches([6]), epochs=1)
    assert caught.value.epoch == 1
    before = flagged_trainer(make, waits=waits, accumulate=accumulate)
    before.fit(batches()[:6], epochs=1)
    for one, other in zip(trainer.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(one, other)
    if type(trainer.optimizer).__name__ != "SGD":  # its count of steps stands still
        assert trainer.optimizer.state[trainer.model.weight]["step"] == 6 // accumulate


def test_the_flag_changes_no_bit_of_a_good_run_and_is_taken_back():
    trainer = flagged_trainer(OPTIMIZERS["adam"], waits=False, clip_norm=0.5)
    trainer.fit(batches(), epochs=2)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    plain = vd.Trainer(model, OPTIMIZERS["adam"](model.parameters(), fused=True), loss="mse", clip_norm=0.5, device="cpu",
                       progress=False)  # fmt: skip
    plain.fit(batches(), epochs=2)
    assert torch.equal(trainer.model.weight, model.weight)
    assert not hasattr(trainer.optimizer, "found_inf")


def test_a_flag_that_is_read_in_time_still_has_the_batch(tmp_path):
    trainer = flagged_trainer(OPTIMIZERS["sgd"], waits=False, log_every="1 step", run_dir=tmp_path / "run", loggers=[])
    with pytest.raises(NumericsError, match=r"step 7 \(epoch 1, batch 7.*the input 'batch/0'"):
        trainer.fit(batches([6]), epochs=1)
    assert (tmp_path / "run" / "nonfinite" / "step-00000007" / "batch.safetensors").is_file()
    late = flagged_trainer(OPTIMIZERS["sgd"], waits=False, log_every="8 steps", run_dir=tmp_path / "late", loggers=[])
    with pytest.raises(NumericsError, match=r'step 6 \(epoch 1, lr 0.1\).*The batch was gone .* log_every="1 step"'):
        late.fit(batches([5]), epochs=1)
    assert not (tmp_path / "late" / "nonfinite").exists()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_bad_gradient_raises_the_flag_too(clip_norm):
    trainer = flagged_trainer(OPTIMIZERS["sgd"], waits=False, clip_norm=clip_norm, log_every="1000 steps")
    start = trainer.model.weight.clone()
    with pytest.raises(NumericsError, match="A gradient became nan at step 1"):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train(batches()):
                output = trainer.model(x)
                trainer.step(nn.functional.mse_loss(output, y) + torch.sqrt((output * 0).abs().sum()))
    assert torch.equal(trainer.model.weight, start)


def test_losses_of_a_long_interval_are_kept_in_few_tensors():
    guard = FlagGuard(torch.optim.SGD([parameter(1.0)], lr=0.1, fused=True), CPU, waits=False)
    for index in range(1200):
        guard.check_loss(torch.tensor(NAN if index == 700 else 1.0), 1.0)
        guard.before_update()
    with pytest.raises(NonFinite) as caught:
        guard.read_flag()
    assert caught.value.updates_ago == 500
    guard.read_flag()  # it was told


# -- which guard ---------------------------------------------------------------------------------------------------------


def test_fp16_is_left_to_its_scaler():
    assert type(make_guard("stop", OPTIMIZERS["sgd"]([parameter(1.0)]), CPU, is_scaled=True)) is Guard


@pytest.mark.parametrize(
    ("policy", "device", "fused", "kind", "waits"),
    [
        ("stop", "cpu", False, ReadGuard, ""),
        ("skip", "cpu", False, ReadGuard, ""),
        ("skip", "cuda", True, ReadGuard, 'on_nonfinite="skip" reads every loss'),
        ("stop", "mps", True, ReadGuard, "every loss is read"),
    ],
)
def test_what_waits_says_so(policy, device, fused, kind, waits):
    guard = make_guard(policy, OPTIMIZERS["adam"]([parameter(1.0)], fused=fused), torch.device(device), is_scaled=False)
    assert type(guard) is kind
    assert waits in guard.waits
    assert bool(guard.waits) == bool(waits)
