from collections import UserDict, namedtuple

import torch

from velodrome.data.batches import first_tensor, map_tensors, move, num_samples

Point = namedtuple("Point", ["x", "y"])
CPU, META = torch.device("cpu"), torch.device("meta")


class Strict(dict):
    """A mapping that cannot be made from a dict alone."""

    def __init__(self, values, more):
        super().__init__(values)


def test_move_moves_every_tensor_and_keeps_types_and_other_values():
    batch = {"a": torch.zeros(2), "b": [Point(torch.zeros(2), "name"), (torch.zeros(1), 5)], "c": None}
    moved = move(batch, META)
    assert moved["a"].device == META
    point, pair = moved["b"]
    assert isinstance(point, Point)
    assert point.x.device == META
    assert point.y == "name"
    assert pair[0].device == META
    assert pair[1] == 5
    assert moved["c"] is None
    assert batch["a"].device == CPU


def test_move_keeps_mappings_of_other_kinds_where_they_can_be_made():
    assert isinstance(move(UserDict(a=torch.zeros(1)), META), UserDict)
    moved = move(Strict({"a": torch.zeros(1)}, more=1), META)
    assert type(moved) is dict
    assert moved["a"].device == META


def test_move_to_where_it_is_copies_nothing():
    tensor = torch.zeros(2)
    assert move([tensor], CPU)[0] is tensor


def test_num_samples_is_the_length_of_the_first_tensor_with_dimensions():
    cases = [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4), torch.zeros(5)), 4),
        ([torch.tensor(1.0), torch.zeros(5)], 5),
        ({"id": ["a", "b"], "x": torch.zeros(6, 1)}, 6),
        ((Point("a", torch.zeros(2)), None), 2),
        (torch.tensor(1.0), 1),
        ("text", 1),
        ([], 1),
        (torch.zeros(0, 2), 0),
    ]
    for batch, expected in cases:
        assert num_samples(batch) == expected
    assert first_tensor({"x": "text"}) is None


def test_move_to_the_cpu_waits_for_the_numbers(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, *, non_blocking: asked.append(non_blocking))
    move(torch.zeros(1), CPU)
    move(torch.zeros(1), META)
    assert asked == [False, True]


def test_map_tensors_keeps_the_nesting():
    batch = {"a": [Point(torch.zeros(2), "name")], "b": UserDict(c=(torch.ones(1), 5))}
    mapped = map_tensors(batch, lambda tensor: tensor.sum().item())
    assert mapped == {"a": [Point(0.0, "name")], "b": UserDict(c=(1.0, 5))}
    assert type(mapped["a"][0]) is Point
    assert type(mapped["b"]) is UserDict
