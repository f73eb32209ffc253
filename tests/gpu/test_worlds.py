"""Worlds on CUDA: NCCL with a GPU each, Gloo where processes share one. The laws themselves are tests/laws/test_worlds.py's."""

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.testing.worlds import run_in_processes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def train(precision):
    """Train on CUDA; return device, backend, weights, loss, and the collectives of each step."""
    import torch.distributed as dist

    from velodrome.distributed.world import join_world

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(26, 4, generator=generator)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    trainer = vd.Trainer(model, "adam", lr=0.01, loss="cross_entropy", metrics=["accuracy"], precision=precision,
                         device="cuda", seed=0, clip_norm=1.0, accumulate=2, progress=False)  # fmt: skip
    result = trainer.fit((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()), epochs=3, batch_size=4)
    world = join_world(trainer.device)
    backend = dist.get_backend_config() if world.size > 1 else ""
    weights = [parameter.detach().cpu() for parameter in model.parameters()]
    return str(trainer.device), backend, weights, result.metrics["val/loss"], result.metrics["val/accuracy"]


def compare(results, precision):
    _, _, weights, loss, accuracy = train(precision)
    tolerance = {"fp32": 1e-5, "fp16": 2e-2}[precision]
    for result in results:
        torch.testing.assert_close(result[2], weights, rtol=tolerance, atol=tolerance)
        assert result[3] == pytest.approx(loss, rel=tolerance)
        assert result[4] == pytest.approx(accuracy, abs=0.05 if precision == "fp16" else 1e-6)
        assert all(torch.equal(a, b) for a, b in zip(result[2], results[0][2], strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_processes_that_share_a_gpu_give_the_numbers_of_one(precision):
    size = torch.cuda.device_count() + 1
    results = run_in_processes(train, size, precision, timeout_s=240)
    assert {result[0] for result in results} == {f"cuda:{index}" for index in range(torch.cuda.device_count())}
    compare(results, precision)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_processes_with_a_gpu_each_give_the_numbers_of_one(precision):
    results = run_in_processes(train, 2, precision, timeout_s=240)
    assert [result[0] for result in results] == ["cuda:0", "cuda:1"]
    assert all("cuda:nccl" in result[1] for result in results)
    compare(results, precision)
