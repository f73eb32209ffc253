"""Backward passes and updates without torch's wrappers: the same bits, and every hook still called."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from velodrome.step.bare import BareBackward, BareStep

NAMES = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adadelta", "Adamax", "Rprop", "ASGD"]
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def make(kind, **args):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, kind(model.parameters(), lr=0.05, **args)


def train(model, optimizer, *, backward, step, num_steps=4):
    for _ in range(num_steps):
        optimizer.zero_grad()
        backward(functional.cross_entropy(model(X), Y))
        step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_bare_step_and_backward_give_the_bits_of_the_public_calls(name):
    kind = getattr(torch.optim, name)
    model, optimizer = make(kind)
    expected = train(model, optimizer, backward=torch.Tensor.backward, step=optimizer.step)
    model, optimizer = make(kind)
    bare = BareStep(optimizer)
    assert bare._inner is not None, "the short way is not taken, so nothing is compared"
    got = train(model, optimizer, backward=BareBackward(), step=bare)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_backward_of_float64_after_float32_and_back():
    backward = BareBackward()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        weight = torch.ones(3, dtype=dtype, requires_grad=True)
        backward((weight * 2).sum())
        assert weight.grad is not None
        assert weight.grad.dtype is dtype
        assert weight.grad.tolist() == [2, 2, 2]


def test_backward_of_a_loss_that_is_the_parameter_itself_leaves_the_next_gradient_alone():
    backward = BareBackward()
    weight = torch.tensor(3.0, requires_grad=True)
    backward(weight)
    backward(weight)  # 1 + 1, in the memory of the gradient and not in that of the one
    other = torch.tensor(3.0, requires_grad=True)
    backward(other * 1)
    assert (weight.grad, other.grad) == (torch.tensor(2.0), torch.tensor(1.0))


def test_backward_of_no_scalar_says_what_torch_says():
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        BareBackward()(torch.ones(2, requires_grad=True) * 2)
    with pytest.raises(RuntimeError, match="does not require grad"):
        BareBackward()(torch.tensor(1.0))


def test_hooks_of_the_optimizer_and_of_all_optimizers_are_called():
    model, optimizer = make(torch.optim.SGD)
    step, calls = BareStep(optimizer), []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("always before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("always after")),
    ]
    for handle in handles:
        train(model, optimizer, backward=BareBackward(), step=step, num_steps=1)
        handle.remove()
    assert calls[:4] == ["always before", "before", "after", "always after"]
    assert calls[4:] == ["always before", "after", "always after", "always before", "always after", "always after"]


def test_a_profiler_sees_the_step_by_its_name():
    model, optimizer = make(torch.optim.SGD)
    step = BareStep(optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        train(model, optimizer, backward=BareBackward(), step=step, num_steps=1)
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


class Counting(torch.optim.SGD):
    """An optimizer of the user's own."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        return super().step(closure)


def test_a_subclass_and_a_patched_step_are_called_as_they_are():
    model, optimizer = make(Counting)
    train(model, optimizer, backward=BareBackward(), step=BareStep(optimizer), num_steps=3)
    assert optimizer.num_steps == 3
    model, optimizer = make(torch.optim.SGD)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the step of this optimizer
    assert BareStep(optimizer)._inner is None
    model, optimizer = make(torch.optim.SGD, differentiable=True)
    assert BareStep(optimizer)._inner is None
