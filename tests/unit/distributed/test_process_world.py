"""What a world of several processes sums, gathers and broadcasts."""

import math

import pytest
import torch
from torch import nn

from velodrome.distributed.world import SINGLE, join_world
from velodrome.errors import WorldError
from velodrome.testing.worlds import Processes

CPU = torch.device("cpu")


def place():
    world = join_world(CPU)
    return world.rank, world.size, world.local_rank, world.is_main, join_world(CPU) is world


def test_each_process_knows_its_place(two, three):
    assert two.run(place) == [(0, 2, 0, True, True), (1, 2, 1, False, True)]
    assert [result[:2] for result in three.run(place)] == [(0, 3), (1, 3), (2, 3)]


def summed(dtypes, extras):
    """Return the gradients and extras after a sum; parameter i of rank r has the gradient (i + 1) * (r + 1), the last one only on rank 1."""
    world = join_world(CPU)
    parameters = [nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for dtype in dtypes]
    for index, parameter in enumerate(parameters):
        if parameter is not parameters[-1] or world.rank == 1:
            parameter.grad = torch.full_like(parameter, (index + 1) * (world.rank + 1))
    before = world.num_collectives
    totals = world.sum_gradients(parameters, torch.tensor(extras, dtype=torch.float64) * (world.rank + 1))
    return [parameter.grad for parameter in parameters], totals, world.num_collectives - before


@pytest.mark.parametrize(
    ("dtypes", "num_collectives"),
    [
        ([torch.float32] * 3, 1),
        ([torch.float64] * 3, 1),
        ([torch.float32, torch.float64, torch.float32], 2),
        ([torch.float32, torch.bfloat16, torch.float32], 2),
        ([torch.bfloat16] * 3, 2),
    ],
)
def test_gradients_and_extras_are_summed_with_no_more_traffic_than_needed(two, three, dtypes, num_collectives):
    extras = [16_777_217.0, 1 / 3, -0.1]
    for processes in (two, three):
        factor = sum(range(1, processes.size + 1))
        for gradients, totals, count in processes.run(summed, dtypes, extras):
            expected = [1.0 * factor, 2.0 * factor, 3.0 * 2]  # the last one: 3 * (1 + 1), of rank 1 alone
            assert [gradient.unique().tolist() for gradient in gradients] == [[value] for value in expected]
            assert [gradient.dtype for gradient in gradients] == dtypes
            exact = [math.fsum(rank * extra for rank in range(1, processes.size + 1)) for extra in extras]
            torch.testing.assert_close(totals, torch.tensor(exact, dtype=torch.float64), rtol=1e-15, atol=0)
            assert count == num_collectives


def extras_alone():
    world = join_world(CPU)
    first = nn.Parameter(torch.zeros(3))
    second = nn.Parameter(torch.zeros(1))
    totals = world.sum_gradients([first, second], torch.tensor([0.0, float(world.rank)], dtype=torch.float64))
    return first.grad, second.grad, totals.tolist()


def test_a_parameter_without_gradient_anywhere_keeps_none(two):
    assert two.run(extras_alone) == [(None, None, [0.0, 1.0])] * 2


def large():
    """Three parameters of 16 MB: three buckets; values differ by place, so that a mix-up would show."""
    world = join_world(CPU)
    parameters = [nn.Parameter(torch.zeros(4, 1 << 20)) for _ in range(3)]
    for index, parameter in enumerate(parameters):
        parameter.grad = (torch.arange(1 << 22) % 1000 + index).view(4, -1).float() * (world.rank + 1)
    before = world.num_collectives
    world.sum_gradients(parameters, torch.ones(1, dtype=torch.float64))
    right = [
        torch.equal(parameter.grad, (torch.arange(1 << 22) % 1000 + index).view(4, -1).float() * 3)
        for index, parameter in enumerate(parameters)
    ]
    return right, world.num_collectives - before


def test_large_models_are_summed_in_buckets(two):
    assert two.run(large) == [([True] * 3, 3)] * 2


def transposed():
    """A parameter in another memory order, and a scalar one."""
    world = join_world(CPU)
    parameter = nn.Parameter(torch.zeros(2, 4, 3, 3).to(memory_format=torch.channels_last))
    scalar = nn.Parameter(torch.tensor(0.0))
    values = torch.arange(72.0).view(2, 4, 3, 3)
    parameter.grad = (values * (world.rank + 1)).to(memory_format=torch.channels_last)
    if world.rank:
        scalar.grad = torch.tensor(5.0)
    world.sum_gradients([parameter, scalar], torch.zeros(0, dtype=torch.float64))
    return torch.equal(parameter.grad, values * 3), scalar.grad.item(), parameter.grad.stride() == parameter.stride()


def test_memory_order_and_scalars_survive(two):
    assert two.run(transposed) == [(True, 5.0, True)] * 2


def sparse():
    world = join_world(CPU)
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    try:
        world.sum_gradients([embedding.weight], torch.zeros(1, dtype=torch.float64))
    except ValueError as error:
        return str(error)


def test_sparse_gradients_are_refused(two):
    for message in two.run(sparse):
        assert "A gradient of shape (4, 2) is sparse" in message
        assert "sparse=False" in message


def objects():
    world = join_world(CPU)
    sums = {"loss": [1.5 + world.rank, 2.0]}
    if world.rank:
        sums["late"] = [7.0, 1.0]
    world.barrier()
    return world.merge_sums(sums), world.gather(("a", world.rank)), world.any(world.rank == 1), world.any(False)


def test_numbers_and_objects_are_exchanged(two):
    expected = ({"loss": [4.0, 4.0], "late": [7.0, 1.0]}, [("a", 0), ("a", 1)], True, False)
    assert two.run(objects) == [expected, expected]


def broadcasts():
    world = join_world(CPU)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1).bfloat16())
    model.register_buffer("mask", torch.tensor([True, False, world.rank == 0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(world.rank + 1)
    model[1].num_batches_tracked += 5 * (world.rank + 1)
    world.broadcast_buffers(model)
    weights_before = {parameter.item() for parameter in model[0].weight.flatten()}
    world.broadcast_from_main(model)
    weights = {float(value) for parameter in model.parameters() for value in parameter.flatten()}
    return model.mask.tolist(), int(model[1].num_batches_tracked), weights_before, weights


def test_the_values_of_rank_0_are_broadcast(two):
    of_rank_0, of_rank_1 = two.run(broadcasts)
    assert of_rank_0 == ([True, False, True], 5, {1.0}, {1.0})
    assert of_rank_1 == ([True, False, True], 5, {2.0}, {1.0})


def at_different_places():
    world = join_world(CPU)
    try:
        world.gather(3 if world.rank else "three")
    except WorldError as error:
        return str(error), world.any(True)  # and it goes on


def test_processes_that_make_different_calls_are_told_so(two):
    for message, flag in two.run(at_different_places):
        assert "they exchange a int in rank 1 and a str in rank 0. All must make the same calls" in message
        assert flag


def stay_away():
    """Rank 0 waits for a collective that rank 1, alive, never comes to."""
    import datetime
    import time

    import torch.distributed as dist

    world = join_world(CPU)
    world.barrier()
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=1), dist.group.WORLD)
    if world.rank:
        time.sleep(9)
        return world.num_collectives
    try:
        world.barrier()
    except WorldError as error:
        return str(error), error.rank, world.num_collectives


def test_a_process_that_stays_away_is_named_after_the_timeout():
    with Processes(2) as processes:
        (message, rank, count), others_count = processes.run(stay_away)
    assert (rank, count, others_count) == (1, 2, 1)
    assert message.startswith("Rank 1 is alive, but has only come to exchange 1 of 2")


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_several_processes_want_a_device_with_collectives(monkeypatch, device):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match='Several processes train together on the CPU or on CUDA: use device="cpu"'):
        join_world(torch.device(device))


def test_a_world_of_one_is_the_identity():
    world = join_world(CPU)
    assert world is SINGLE
    assert (world.rank, world.size, world.local_rank, world.is_main) == (0, 1, 0, True)
    extras = torch.ones(2, dtype=torch.float64)
    parameter = nn.Parameter(torch.ones(1))
    assert world.sum_gradients([parameter], extras) is extras
    assert parameter.grad is None
    assert world.merge_sums({"loss": [1.0, 2.0]}) == {"loss": [1.0, 2.0]}
    assert world.gather("x") == ["x"]
    assert world.any(True)
    assert not world.any(False)
    world.broadcast_from_main(nn.Linear(1, 1))
    world.broadcast_buffers(nn.Linear(1, 1))
    world.barrier()
    world.note(ValueError())
    world.close()


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "")])
def test_a_place_that_cannot_be_is_refused(monkeypatch, rank, size):
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=f"RANK={rank}, WORLD_SIZE={size}, which is no place among processes"):
        join_world(CPU)


def test_torchrun_with_one_process_is_a_world_of_one(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert join_world(CPU) is SINGLE


def fail(kind):
    raise {"value": ValueError}[kind]("planted")


def test_errors_come_back_whole(two):
    with pytest.raises(WorldError, match=r"(?s)failed in 2 of 2.*rank 1 of 2:.*raise .*ValueError: planted"):
        two.run(fail, "value")
    assert two.run(place)[1][0] == 1  # the processes go on
