"""BatchNorm statistics recomputed over data, with means that can be worked out by hand."""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from velodrome.step.batch_norm import recompute_statistics

BATCHES = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]])]


def test_statistics_are_the_means_over_all_batches():
    layer = nn.BatchNorm1d(1)
    layer(torch.full((2, 1), 100.0))  # what was there before is forgotten
    assert recompute_statistics(layer, BATCHES, layer) == 2
    assert layer.running_mean.item() == 3.5  # (1 + 6) / 2
    assert layer.running_var.item() == 5.0  # (2 + 8) / 2
    assert layer.num_batches_tracked.item() == 2
    assert layer.momentum == 0.1


def test_equal_to_torchs_update_bn():
    torch.manual_seed(0)
    mine, theirs = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    data = torch.randn(4, 8, 3)
    recompute_statistics(mine, data, mine)
    update_bn(data, theirs)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())


def test_compiled_model_is_not_compiled_anew():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.BatchNorm1d(1)

        def forward(self, x):
            return self.layer(x)

    model = Model()
    model.compile(backend=backend)
    recompute_statistics(model, BATCHES, model)
    assert model.layer.running_mean.item() == 3.5
    assert compiled == []
    model(BATCHES[0])  # negative control: elsewhere it is compiled
    assert len(compiled) == 1


def test_frozen_layer_stays_as_it_is():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    model[0].eval()
    recompute_statistics(model, BATCHES, model)
    assert model[0].running_mean.item() == 0
    assert model[0].num_batches_tracked.item() == 0
    assert model[1].num_batches_tracked.item() == 2


def test_without_batches_or_layers_nothing_changes():
    layer = nn.BatchNorm1d(1)
    layer(BATCHES[1])
    before = layer.running_mean.item()
    assert recompute_statistics(layer, [], layer) == 0
    assert layer.running_mean.item() == before
    assert recompute_statistics(nn.Linear(1, 1), BATCHES, lambda batch: 1 / 0) == 0
