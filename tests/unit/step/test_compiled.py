"""Graph mode through the trainer: clean names, no graph for the odd batch, a price that is said."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.errors import ArgumentError
from velodrome.testing.tiny import tiny_classification, tiny_mlp

dynamo_utils = pytest.importorskip("torch._dynamo.utils")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    dynamo_utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return dynamo_utils.counters["stats"]["unique_graphs"]


def fit(model, *, samples=100, epochs=2, batch_size=8, says=None, **arguments):
    x, y = tiny_classification(samples)
    trainer = vd.Trainer(model, "sgd", lr=0.3, loss="cross_entropy", device="cpu", progress=False, **arguments)
    if says is not None:
        trainer._run.engine_phases._say = says.append
    return trainer.fit((x, y), (x, y), epochs=epochs, batch_size=batch_size, eval_batch_size=32, shuffle=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_graph_for_training_and_one_for_evaluation_and_none_for_ragged_batches(precision):
    model = tiny_mlp()
    names = list(model.state_dict())
    fit(model, epochs=3, compile={"backend": "eager"}, precision=precision)  # 100 = 12 x 8 + 4 = 3 x 32 + 4
    assert num_graphs() == 2
    assert list(model.state_dict()) == names
    assert type(model) is nn.Sequential


def test_compiled_and_plain_weights_are_the_same_bits_with_the_eager_backend():
    models = [tiny_mlp(), tiny_mlp()]
    fit(models[0], compile={"backend": "eager"})
    fit(models[1])
    assert num_graphs() == 2
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_batches_of_many_sizes_are_left_to_dynamic_shapes():
    x, y = tiny_classification(90)
    data = list(zip(x.split([8, 7, 6, 9, 10, 11, 12, 13, 14]), y.split([8, 7, 6, 9, 10, 11, 12, 13, 14]), strict=True))
    vd.fit(tiny_mlp(), data, epochs=2, loss="cross_entropy", optimizer="sgd", lr=0.1, compile={"backend": "eager"},
           device="cpu", progress=False)  # fmt: skip
    assert 1 <= num_graphs() <= 2


def test_cost_and_break_even_are_said_once():
    lines = []
    fit(tiny_mlp(), compile={"backend": "eager"}, says=lines, epochs=3)
    assert len(lines) == 1
    assert lines[0].startswith("compile: took ")
    assert "pays off" in lines[0]


def test_a_tenth_model_is_compiled_like_the_first():
    """torch stops compiling a function after eight graphs of it: a sweep of trainers must not share one."""
    for number in range(10):
        fit(tiny_mlp(), compile={"backend": "eager"}, epochs=1)
        assert num_graphs() == 2 * (number + 1)


def test_a_copy_of_a_compiled_model_is_its_own():
    model = tiny_mlp()
    fit(model, compile={"backend": "eager"})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert model(torch.ones(1, 8)).abs().sum() == 0
    assert twin(torch.ones(1, 8)).abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("c++") is None, reason="inductor needs a compiler")
def test_inductor_gives_nearly_the_same_weights():
    models = [tiny_mlp(), tiny_mlp()]
    fit(models[0], compile=True, samples=40)
    fit(models[1], samples=40)
    assert num_graphs() == 2
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("compile", "fragment"),
    [("fastest", "no mode of torch.compile"), ({"backend": "eager", "quickly": True}, "torch.compile refused")],
)
def test_unknown_modes_and_arguments_are_refused(compile, fragment):
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        vd.Trainer(tiny_mlp(), "sgd", lr=0.1, compile=compile, device="cpu")


def test_an_evaluation_in_the_middle_of_an_epoch_does_not_change_which_batch_is_odd():
    x, y = tiny_classification(100)

    class Evaluate(vd.Callback):
        def on_step_end(self, trainer):
            if trainer.progress.steps_in_epoch == 5:
                trainer.evaluate((x, y), batch_size=32)

    trainer = vd.Trainer(tiny_mlp(), "sgd", lr=0.1, loss="cross_entropy", compile={"backend": "eager"},
                         callbacks=[Evaluate()], device="cpu", progress=False)  # fmt: skip
    trainer.fit((x, y), epochs=3, batch_size=8, shuffle=False)
    assert num_graphs() == 2


class Block(nn.Module):
    """What is not the same when it is computed twice: counts, and numbers that are drawn."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


def trained_with_recomputation(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 3))
    x, y = torch.randn(50, 8), torch.arange(50) % 3
    vd.fit(
        model, (x, y), epochs=2, batch_size=12, loss="cross_entropy", optimizer="sgd", lr=0.1, seed=0, device="cpu",
        progress=False, **arguments,
    )  # fmt: skip
    return model.state_dict()


def test_recomputed_activations_are_compiled_with_what_is_drawn_and_counted():
    plain = trained_with_recomputation()
    for arguments in ({}, {"gradient_checkpointing": ["1"]}):
        found = trained_with_recomputation(compile={"backend": "aot_eager"}, **arguments)
        assert all(map(torch.equal, plain.values(), found.values()))


def test_a_backend_that_would_count_what_is_recomputed_twice_is_refused():
    with pytest.raises(
        ArgumentError, match=r"the backend 'eager' runs what is recomputed.*\"inductor\" or \"aot_eager\""
    ):
        trained_with_recomputation(compile={"backend": "eager"}, gradient_checkpointing=["1"])


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x) if x.mean() > 0 else self.layer(-x)


def test_a_model_that_cannot_be_compiled_is_not_blamed_on_the_data():
    data = torch.randn(24, 8), torch.arange(24) % 3
    with pytest.raises(ArgumentError, match=r"torch\.compile cannot compile the model.*Leave compile out"):
        vd.fit(
            Branches(), data, epochs=1, batch_size=8, loss="cross_entropy", device="cpu", progress=False,
            compile={"backend": "eager", "fullgraph": True},
        )  # fmt: skip
