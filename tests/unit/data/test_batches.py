from collections import UserDict, namedtuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from velodrome.data.batches import map_tensors, move, num_samples

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


def pack():
    return pack_sequence([torch.ones(2, 1), torch.zeros(3, 1)], enforce_sorted=False)


def test_a_packed_sequence_has_as_many_samples_as_sequences():
    assert num_samples(pack()) == 2
    assert num_samples((pack(), torch.zeros(7))) == 2


def test_a_packed_sequence_moves_with_its_order_and_keeps_its_lengths_on_the_cpu():
    moved, _ = move((pack(), "name"), META)
    assert (moved.data.device, moved.sorted_indices.device, moved.unsorted_indices.device) == (META, META, META)
    assert moved.batch_sizes.tolist() == [2, 2, 1]
    doubled = map_tensors(pack(), lambda tensor: 2 * tensor)
    assert pad_packed_sequence(doubled)[0].squeeze(2).T.tolist() == [[2, 2, 0], [0, 0, 0]]


def test_an_object_with_a_to_of_its_own_moves_itself_and_a_class_or_model_does_not():
    class Graphs:
        def __init__(self, edges):
            self.edges = edges

        def to(self, device):
            return Graphs(self.edges.to(device))

    model = nn.Linear(1, 1)
    graphs, kind, same = move([Graphs(torch.zeros(2, 4)), Graphs, model], META)
    assert graphs.edges.device == META
    assert (kind, same) == (Graphs, model)
    assert model.weight.device == CPU


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
