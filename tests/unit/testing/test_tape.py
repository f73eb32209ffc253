"""A tape does the same operations on the same memory again, and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from velodrome.testing.tape import TapeReplayer


def test_recording_changes_nothing_and_each_replay_does_the_work():
    x, total = torch.tensor([1.0, 2.0]), torch.zeros(2)
    replay = TapeReplayer().record(lambda: total.add_(x * 3))
    assert total.tolist() == [0.0, 0.0]
    replay()
    assert total.tolist() == [3.0, 6.0]
    x.copy_(torch.tensor([10.0, 20.0]))
    replay()
    assert total.tolist() == [33.0, 66.0]


def test_a_number_of_python_is_what_it_was():
    factor, total = [2.0], torch.zeros(())
    replay = TapeReplayer().record(lambda: total.add_(torch.ones(()) * factor[0]))
    factor[0] = 100.0
    replay()
    assert total.item() == 2.0


def test_a_tensor_is_the_memory_that_it_was():
    held = nn.Parameter(torch.zeros(2))
    old = held.data

    @torch.no_grad()
    def work():
        held.add_(1.0)

    replay = TapeReplayer().record(work)
    held.data = torch.zeros(2)
    replay()
    assert held.tolist() == [0.0, 0.0]
    assert old.tolist() == [1.0, 1.0]


def test_random_numbers_are_drawn_from_the_generators_present_state():
    out = torch.zeros(64)

    def work():
        out.copy_(F.dropout(torch.ones(64), 0.5))

    torch.manual_seed(0)
    replay = TapeReplayer().record(work)
    found, expected = [], []
    for into, act in ((found, replay), (expected, work)):
        torch.manual_seed(0)
        for _ in range(2):
            act()
            into.append(out.clone())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_whole_step_has_the_bits_of_the_step(optimizer):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        return model, optimizer(model.parameters(), lr=0.1, fused=True)

    x, y = torch.randn(6, 4), torch.randint(0, 2, (6,))
    ends = []
    for is_recorded in (True, False):
        model, own = make()

        def step(model=model, own=own):
            F.cross_entropy(model(x), y).backward()
            own.step()
            own.zero_grad()

        step()  # makes the optimizer's state
        act = TapeReplayer().record(step) if is_recorded else step
        for _ in range(3):
            act()
        ends.append(model.state_dict())
    assert [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])] == []


def test_what_hands_a_value_to_python_is_named():
    recorder = TapeReplayer()
    with recorder.noting_waits() as waits:
        torch.ones(2).sum()
    assert waits == []
    with recorder.noting_waits() as waits:
        torch.ones(2).sum().item()
        bool(torch.ones(()) > 0)
    assert [where.rpartition(", line ")[0] for where in waits] == [__file__] * 2
