"""Memory that really runs out, on CUDA: the allocator is given a small share of the device. The laws are tests/laws/test_splitting.py's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import velodrome as vd

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

MIB = 2**20
WIDTH, DEPTH, SAMPLES = 1024, 40, 4096
# A layer keeps its activations for the backward pass: 4096 samples x 1024 x 4 bytes x (linear + tanh) x 40 layers = 1.25 GiB; 4 MiB of
# weights a layer, twice with gradients: 0.3 GiB. A limit of 0.9 GiB takes a quarter of the batch.


@pytest.fixture
def little_memory():
    """Let this process have 0.9 GiB more than it has now."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 920 * MIB) / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def make(**arguments) -> vd.Trainer:
    torch.manual_seed(0)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    return vd.Trainer(
        model,
        "sgd",
        lr=0.01,
        loss="cross_entropy",
        metrics=["accuracy"],
        device="cuda",
        seed=0,
        progress=False,
        **arguments,
    )


def data(samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, WIDTH, generator=generator), torch.randint(0, 10, (samples,), generator=generator)


def test_error_knows_the_memory_and_gives_it_back(little_memory) -> None:
    trainer = make()
    with pytest.raises(
        vd.errors.OutOfMemoryError, match=r"GiB were in use at most, .* GiB were free.*on_oom"
    ) as caught:
        trainer.fit(data(), epochs=1, batch_size=SAMPLES)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert caught.value.peak_bytes > 300 * MIB
    # What stays: the data (16 MiB and what is gathered of them) and the weights (160 MiB), no gradients and no activations.
    assert torch.cuda.memory_allocated() < 300 * MIB
    small = make()  # the process can go on
    small.fit(data(64), epochs=1, batch_size=64)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_batch_that_does_not_fit_gives_the_weights_of_one_that_does(precision, little_memory) -> None:
    split = make(on_oom="split", precision=precision, accumulate=2)
    split.fit(data(2 * SAMPLES), data(), epochs=1, batch_size=SAMPLES, eval_batch_size=SAMPLES, shuffle=False)
    assert split._engine.part_sizes["train"] < SAMPLES
    weights = [parameter.detach().cpu() for parameter in split.model.parameters()]
    loss = split.result.metrics["train/loss"]
    del split
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)
    whole = make(precision=precision, accumulate=2)
    whole.fit(data(2 * SAMPLES), data(), epochs=1, batch_size=SAMPLES, eval_batch_size=SAMPLES, shuffle=False)
    assert loss == pytest.approx(whole.result.metrics["train/loss"], rel=1e-4 if precision == "fp32" else 1e-2)
    for ours, other in zip(weights, whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, other.detach().cpu(), rtol=1e-3, atol=1e-5)


def test_prediction_is_split(little_memory) -> None:
    x = torch.randn(300_000, 64)
    wide = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 4))  # 1.1 GiB of activations for all at once
    trainer = vd.Trainer(wide, None, device="cuda", progress=False, on_oom="split")
    parts = trainer.predict(x, batch_size=300_000)
    torch.testing.assert_close(parts, trainer.predict(x, batch_size=10_000), rtol=1e-4, atol=1e-5)
    assert 0 < trainer._engine.part_sizes["evaluation"] < 300_000
