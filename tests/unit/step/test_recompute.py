"""Recomputed activations: fewer are kept, and nothing else differs."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn

from velodrome.errors import ArgumentError
from velodrome.step.recompute import recompute_activations


class Block(nn.Module):
    """Dropout, BatchNorm and a keyword: what goes wrong when a forward runs twice."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, *, scale=1.0):
        Block.calls += 1
        return x + scale * self.dropout(torch.relu(self.norm(self.linear(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return self.head(x)


def make_model():
    torch.manual_seed(0)
    return Model()


def train(model, num_steps=3):
    """Return everything that training could change: losses, gradients, weights, buffers, the random stream."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 8)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*losses, *gradients, *model.state_dict().values(), torch.get_rng_state()]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("patterns", [["layers.*"], ["layers"], ["layers.0", "layers.2.norm"], ["*"], "layers.1"])
def test_law_training_is_the_same_bit_for_bit_with_dropout_and_batch_norm(patterns):
    model = make_model()
    recompute_activations(model, patterns)
    assert same(train(model), train(make_model()))


def test_plain_checkpoint_counts_batches_twice():
    """The negative control: why buffers are spared."""
    plain, model = make_model(), make_model()
    for layer in model.layers:
        forward = layer.forward
        layer.forward = lambda x, forward=forward, **kwargs: torch.utils.checkpoint.checkpoint(
            forward, x, use_reentrant=False, **kwargs
        )
    assert not same(train(model), train(plain))
    assert (plain.layers[0].norm.num_batches_tracked, model.layers[0].norm.num_batches_tracked) == (3, 6)


def kept_by_forward(model):
    """Return the number of elements kept for the backward pass, parameters aside."""
    sizes = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.randn(64, 8)).sum()
    del loss
    return sum(sizes.values())


def test_less_is_kept_for_the_backward_pass():
    model = make_model()
    recompute_activations(model, ["layers"])
    assert kept_by_forward(model) < 0.5 * kept_by_forward(make_model())


def test_forward_runs_twice_in_training_and_once_otherwise():
    model = make_model()
    recompute_activations(model, ["layers.0"])
    calls = []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    Block.calls = 0
    model(torch.randn(4, 8)).sum().backward()
    assert Block.calls == 4  # three blocks, and the first once more
    assert len(calls) == 1
    with torch.no_grad():
        model(torch.randn(4, 8))
    assert Block.calls == 7
    model.eval()
    model(torch.randn(4, 8)).sum().backward()
    assert Block.calls == 10


def test_names_types_state_and_signature_stay():
    model, plain = make_model(), make_model()
    assert recompute_activations(model, ["layers"]) == ["layers.0", "layers.1", "layers.2"]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert type(model.layers[0]) is Block
    assert list(inspect.signature(model.layers[0].forward).parameters) == ["x", "scale"]
    plain.load_state_dict(model.state_dict())


def test_calling_again_changes_nothing():
    model = make_model()
    first = recompute_activations(model, ["layers"])
    forwards = [layer.forward for layer in model.layers]
    assert recompute_activations(model, ["layers"]) == first
    assert all(layer.forward is forward for layer, forward in zip(model.layers, forwards, strict=True))


def test_module_inside_a_recomputed_one_is_left_as_it_is():
    model = make_model()
    recompute_activations(model, ["layers"])
    assert recompute_activations(model, ["*.linear"]) == []
    assert "forward" not in vars(model.layers[0].linear)


def test_deep_copy_recomputes_its_own_modules():
    model = make_model()
    recompute_activations(model, ["layers"])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a copy that still ran the original's forward would show it
    assert same(train(twin), train(make_model()))


def test_pickled_model_recomputes_when_it_is_read():
    model = make_model()
    recompute_activations(model, ["layers"])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert read.layers[0].forward.module is read.layers[0]
    assert same(train(read), train(make_model()))


def test_forward_that_somebody_replaced_before_is_kept():
    model = make_model()
    model.head.forward = lambda x: x.sum(1, keepdim=True) * 2
    recompute_activations(model, ["head"])
    assert torch.equal(model.head(torch.ones(1, 8)), torch.tensor([[16.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_the_same_in_the_second_run(dtype):
    def run(model):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype):
            loss = model(torch.randn(16, 8)).float().square().mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    model = make_model()
    recompute_activations(model, ["layers"])
    assert same(run(model), run(make_model()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_dropout_on_cuda_is_the_same_in_the_second_run():
    def run(model):
        torch.manual_seed(1)
        model.cuda()(torch.randn(16, 8, device="cuda")).square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    model = make_model()
    recompute_activations(model, ["layers"])
    assert same(run(model), run(make_model()))


def test_pattern_without_match_is_refused_with_the_nearest_and_nothing_is_changed():
    model = make_model()
    with pytest.raises(ArgumentError, match=r"'layer' matches no module of this Model\. Did you mean \"layers\""):
        recompute_activations(model, ["head", "layer"])
    assert "forward" not in vars(model.head)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_normalisation_is_refused(normalise):
    model = nn.Sequential(normalise(nn.Linear(4, 4)), nn.Linear(4, 1))
    with pytest.raises(ArgumentError, match=r"'0' has spectral normalisation.* Leave it out"):
        recompute_activations(model, ["0"])
