from __future__ import annotations

import json
import math
from collections import deque
from typing import Any

import numpy
import pytest
import torch

from velodrome.checkpoint.nested import join, split
from velodrome.errors import CheckpointError


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        math.inf,
        "text",
        [1, [2.5, None]],
        (1, ("a", [])),
        {"lr": 0.1, "betas": (0.9, 0.999), "foreach": None},
        {0: "zero", (1, 2): "pair", "$tensor": "no mark", "a": 1},
        deque([1, 2], maxlen=5),
        torch.float16,
        {"$tuple": [1]},
    ],
)
def test_plain_values_come_back_with_their_types_through_json(value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    back = join(json.loads(json.dumps(split(value, tensors, place="state"))), tensors)

    assert (back, type(back), tensors) == (value, type(value), {})
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)


def test_tensors_and_arrays_are_put_aside_by_place() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"step": torch.tensor(3.0), "history": [torch.ones(2), None], "table": numpy.arange(3)}
    plain = split(value, tensors, place="state")

    assert sorted(tensors) == ["state/history/0", "state/step", "state/table"]
    back = join(json.loads(json.dumps(plain)), tensors)
    assert back["step"].equal(value["step"])
    assert back["history"][0].equal(torch.ones(2))
    assert back["history"][1] is None
    assert (back["table"] == value["table"]).all()
    assert back["table"].dtype == value["table"].dtype


def test_numbers_of_numpy_become_plain_ones() -> None:
    assert split([numpy.float64(0.5), numpy.int32(2)], {}, place="state") == [0.5, 2]


def test_what_is_no_state_is_refused_with_its_place() -> None:
    with pytest.raises(CheckpointError, match=r"state/a/1 is a function.*holds tensors, arrays, numbers"):
        split({"a": [0, lambda: 0]}, {}, place="state")


def test_a_missing_tensor_and_an_unknown_dtype_are_refused() -> None:
    with pytest.raises(CheckpointError, match="names a tensor 'gone' that it does not hold"):
        join([{"$tensor": "gone"}], {})
    with pytest.raises(CheckpointError, match="names a dtype 'load' that torch does not know"):
        join({"$dtype": "load"}, {})
