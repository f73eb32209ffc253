"""Batches through the pinned ring on CUDA: whole, in order, on their way while the device computes; data that fit are placed once."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import velodrome as vd
from velodrome.errors import DataError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def ring():
    from velodrome.data.pinned import PinnedRing

    return PinnedRing(DEVICE)


def test_many_batches_of_different_sizes_arrive_as_they_were(ring):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(n, 3, 16, 16, generator=generator), torch.arange(n)) for n in (64, 64, 3, 100, 1) * 20]
    found = [ring(batch) for batch in batches]
    for batch, there in zip(batches, found, strict=True):
        for a, b in zip(batch, there, strict=True):
            assert b.device == DEVICE
            assert torch.equal(a, b.cpu())


def test_a_batch_is_not_overwritten_while_the_device_is_busy(ring):
    busy = torch.rand(4096, 4096, device=DEVICE)
    sums, batches = [], [torch.full((1 << 16,), float(n)) for n in range(30)]
    for batch in batches:
        there = ring(batch)
        for _ in range(3):
            busy = (busy @ busy).clamp_(-1, 1)
        sums.append(there.sum())
        batch.fill_(-1)  # what the user does with it afterwards does not matter
        del there
    assert [value.item() / (1 << 16) for value in sums] == list(range(30))


def test_nested_empty_shared_strided_and_packed_parts(ring):
    x = torch.arange(12.0).view(3, 4)
    batch = {
        "a": [x.t(), x[:0]],
        "same": (x, x),
        "text": "words",
        "there": x.to(DEVICE),
        "pack": pack_sequence([x[:2], x[:1]]),
    }
    moved = ring(batch)
    assert torch.equal(moved["a"][0].cpu(), x.t())
    assert moved["a"][1].shape == (0, 4)
    assert torch.equal(moved["same"][1].cpu(), x)
    assert moved["text"] == "words"
    assert moved["there"] is batch["there"]
    assert moved["pack"].data.device == DEVICE


def test_pictures_keep_their_order_of_numbers(ring):
    pictures = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    moved = ring((pictures, torch.arange(4)))[0]
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.cpu(), pictures)


def train(resident):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    images = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = vd.transforms.Compose([vd.transforms.RandomCrop(8, padding=1), vd.transforms.Normalize(0.5, 0.25)])
    data = vd.DataLoader((images, torch.arange(200) % 5), 32, shuffle=True, transform=transform, resident=resident)
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", device="cuda", seed=0, progress=False)
    trainer.fit(data, epochs=2)
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def test_resident_and_prefetched_data_train_the_same_weights():
    assert torch.equal(train(True), train(False))


def test_data_that_do_not_fit_are_refused_with_the_numbers_where_they_must(monkeypatch):
    monkeypatch.setattr("velodrome.data.bound.available_bytes", lambda device: 1000)
    with pytest.raises(DataError, match="resident=True"):
        train(True)


def test_transforms_on_the_device_are_those_on_the_cpu():
    images = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    t = vd.transforms
    every = t.Compose([
        t.ColorJitter(0.4, 0.4), t.RandomCrop(9, padding=2), t.RandomHorizontalFlip(), t.ToFloat(), t.GaussianNoise(0.1), t.RandomErasing(), t.Cutout(3),
    ])  # fmt: skip
    found = [
        torch.cat(list(vd.DataLoader(data, 8, shuffle=True, seed=1, transform=every))).cpu()
        for data in (images, images.to(DEVICE))
    ]
    assert torch.equal(*found)
