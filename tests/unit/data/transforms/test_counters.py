"""The numbers by counting: the published mixing function, in whole 64-bit arithmetic, and what is made of its bits."""

from __future__ import annotations

import numpy
import torch

from velodrome.data.transforms.counters import key_of_epoch, keys_of_samples, normals, uniforms

MASK = (1 << 64) - 1


def mix(bits: int) -> int:
    """SplitMix64's mixing function in Python's whole numbers."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & MASK
    return bits ^ (bits >> 31)


def test_keys_and_numbers_are_those_of_whole_64_bit_arithmetic() -> None:
    key = key_of_epoch(7, 3)
    indices = torch.tensor([0, 1, 59_999, 1 << 40])
    keys = keys_of_samples(key, indices)
    expected = [mix((index * 0x9E3779B97F4A7C15 + key) & MASK) for index in indices.tolist()]

    assert [value & MASK for value in keys.tolist()] == expected
    numbers = uniforms(keys, 3)
    for row, own in zip(numbers.tolist(), expected, strict=True):
        assert row == [(mix((own + j * 0x9E3779B97F4A7C15) & MASK) >> 40) / 2**24 for j in (1, 2, 3)]


def test_the_first_output_is_that_of_the_published_generator() -> None:
    """SplitMix64 of seed 0 begins with this number (Vigna, splitmix64.c; Java's SplittableRandom)."""
    number = uniforms(torch.zeros(1, dtype=torch.int64), 1)
    assert number.item() == (0xE220A8397B1DCDAF >> 40) / 2**24


def test_seeds_and_epochs_that_have_the_same_sum_give_other_keys() -> None:
    assert len({key_of_epoch(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_indices_never_share_a_key() -> None:
    assert len(keys_of_samples(key_of_epoch(0, 0), torch.arange(100_000)).unique()) == 100_000


def test_uniforms_are_even_and_those_of_neighbours_are_not_related() -> None:
    numbers = uniforms(keys_of_samples(key_of_epoch(0, 0), torch.arange(20_000)), 3).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # The mean of n numbers lies within 4 / sqrt(12 n) of 1/2; a correlation of n pairs within 4 / sqrt(n) of 0.
    assert ((numbers.mean(0) - 0.5).abs() < 4 / (12 * 20_000) ** 0.5).all()
    assert torch.histc(numbers[:, 0], 10, 0, 1).sub(2000).abs().max() < 4 * (2000 * 0.9) ** 0.5
    rows = numpy.corrcoef(torch.cat((numbers[:-1], numbers[1:]), 1).T.numpy()) - numpy.eye(6)
    assert numpy.abs(rows).max() < 4 / 20_000**0.5


def test_normals_have_the_moments_of_the_normal_distribution() -> None:
    values = normals(keys_of_samples(1, torch.arange(500)), 200).double()
    # of 100,000: mean within 4/sqrt(n), variance within 4 sqrt(2/n), fourth moment (3) within 4 sqrt(96/n)
    assert abs(values.mean().item()) < 0.0127
    assert abs(values.var().item() - 1) < 0.0179
    assert abs(values.pow(4).mean().item() - 3) < 0.124
    assert len(values.unique()) > 40_000


def test_normals_of_a_sample_do_not_depend_on_the_batch_or_its_length() -> None:
    keys = keys_of_samples(1, torch.arange(9))
    whole = normals(keys, 13)
    for each in range(9):
        assert torch.equal(normals(keys[each : each + 1], 13)[0], whole[each])
    assert torch.equal(normals(keys, 7), whole[:, :7])
