from __future__ import annotations

import pytest
import torch

from velodrome.data.columns import Columns
from velodrome.data.fingerprint import fingerprint

X = torch.arange(600.0).view(200, 3)
Y = torch.arange(200)


def test_equal_data_have_one_fingerprint_wherever_their_memory_lies():
    assert fingerprint(Columns((X, Y))) == fingerprint(Columns((X.clone().t().contiguous().t(), Y.clone())))


@pytest.mark.parametrize(
    "changed",
    [
        (X + 1, Y),
        (X, Y.flip(0)),
        (X[:199], Y[:199]),
        (X.double(), Y),
        (X.view(200, 1, 3), Y),
        (Y, X),
        (X,),
        {"x": X, "y": Y},
    ],
    ids=["values", "labels", "length", "dtype", "shape", "order", "fewer", "names"],
)
def test_other_data_have_another(changed):
    assert fingerprint(Columns(changed)) != fingerprint(Columns((X, Y)))


def test_the_first_and_the_last_sample_count():
    for index in (0, 199):
        other = X.clone()
        other[index] = 0.5
        assert fingerprint(Columns((other, Y))) != fingerprint(Columns((X, Y)))


def test_data_of_any_kind_have_one():
    for data in (
        torch.zeros(0, 2),
        torch.ones(1),
        torch.ones(5, dtype=torch.bool),
        torch.ones(5).bfloat16(),
        torch.ones(3, 0),
    ):
        assert len(fingerprint(Columns(data))) == 16
