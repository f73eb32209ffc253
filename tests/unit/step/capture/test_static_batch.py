"""Batches that stay where they are."""

import pytest
import torch

from velodrome.step.capture.static_batch import StaticBatch, flatten

X, Y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)


def static(batch):
    tensors, nesting = flatten(batch)
    return StaticBatch(batch, tensors, nesting)


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], {"x": X, "y": Y}, X, ((X, X), {"mask": Y})])
def test_a_batch_of_the_same_kind_fits_and_is_copied_in(batch):
    held = static(batch)
    tensors, nesting = flatten(batch)
    others = [tensor + 1 for tensor in tensors]
    assert held.fits(others, nesting)
    held.fill(others)
    assert all(bool((own == 1).all()) for own in held.tensors)
    assert type(held.batch) is type(batch)
    assert bool((X == 0).all())


@pytest.mark.parametrize("other", [(X[:3], Y[:3]), (X.double(), Y), (X, Y, Y), [X, Y], {"x": X, "y": Y}])
def test_another_shape_dtype_or_nesting_does_not_fit(other):
    assert not static((X, Y)).fits(*flatten(other))


@pytest.mark.parametrize("batch", [(X, "name"), {"x": X, "n": 3}, [X, None], torch.nn.Parameter(X)])
def test_what_is_no_plain_tensor_cannot_be_taken_apart(batch):
    assert flatten(batch) is None
