"""What `velodrome export` writes, for models of every shape of call and answer; what is refused, and why."""

from __future__ import annotations

import json
import logging
import types
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from velodrome.errors import DataError, RefusedError
from velodrome.recipes.export.comparing import compare, flatten
from velodrome.recipes.export.example import Example, read_example
from velodrome.recipes.export.onnx_file import read_onnx, save_onnx
from velodrome.recipes.export.program import first_reason, quiet_torch, read_program
from velodrome.recipes.export.write import write_program, write_weights
from velodrome.recipes.loaded_data import LoadedData
from velodrome.recipes.models.transformer import gpt
from velodrome.recipes.schema import Recipe

INSTEAD = "velodrome export RUN --format safetensors"


class Pair(nn.Module):
    """Two inputs of the same shape, whose order matters; a dict with a tuple in it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))

    def forward(self, left, right, scale=None):
        difference = left - 2 * right
        if scale is not None:
            difference = difference * scale
        return {"scores": self.layer(difference), "parts": (left.sum(1), right.argmax(1))}


class Loose(Pair):
    def forward(self, *inputs):
        return super().forward(*inputs)["scores"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(5, 4)
        self.score = nn.Linear(4, 5, bias=False)
        self.score.weight = self.read.weight

    def forward(self, ids):
        return self.score(self.read(ids))


class Named(nn.Module):
    """One module for each way to fail: the body is a function."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.body(x * self.weight)


def example(**inputs):
    """Return six samples by name, or by position where the names are `_0`, `_1`."""
    keyed = {int(name[1:]) if name.startswith("_") else name: tensor for name, tensor in inputs.items()}
    batched = frozenset(key for key, tensor in keyed.items() if len(tensor) == 6)
    return Example(inputs=keyed, batched=batched, num_samples=6, origin="the first validation samples")


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def write(model, inputs, target, *, format="pt2", metadata=None, force=False):
    return write_program(model.eval(), inputs, target, metadata or {}, format=format, instead=INSTEAD, force=force)


@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        (Pair(), example(_0=numbers(6, 3), _1=numbers(6, 3)), ["left", "right"]),
        (Pair(), example(right=numbers(6, 3), left=2 + numbers(6, 3)), ["left", "right"]),
        (Pair(), example(_0=numbers(6, 3), _1=numbers(6, 3), _2=numbers(3)), ["left", "right", "scale"]),
        (Loose(), example(_0=numbers(6, 3), _1=numbers(6, 3)), ["inputs_0", "inputs_1"]),
        (Tied(), example(_0=torch.arange(24).reshape(6, 4) % 5), ["ids"]),
        (gpt(vocab_size=7, context=5, num_layers=1, num_heads=2, width=8), example(_0=torch.arange(30).reshape(6, 5) % 7), ["ids"]),
        (Named(lambda x: x.double() * 2), example(_0=numbers(6, 3).double()), ["x"]),
    ],
    ids=["positions", "names", "constant", "loose", "tied", "gpt", "float64"],
)  # fmt: skip
def test_a_program_takes_any_number_of_samples(tmp_path, model, inputs, names):
    written = write(model, inputs, tmp_path / "m.pt2")
    assert [entry["name"] for entry in written.metadata["inputs"]] == names
    run, metadata = read_program(tmp_path / "m.pt2")
    assert json.loads(metadata) == written.metadata
    seven = inputs.of_size(7)  # a number that was never tried
    assert compare(flatten(seven.run(model)), run(seven), num_eps=0.0).problem == ""


class Answer(NamedTuple):
    logits: torch.Tensor
    extra: Kept


@dataclass
class Kept:
    state: torch.Tensor
    loss: torch.Tensor | None = None


@torch.library.custom_op("export_test::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


double.register_fake(torch.empty_like)


def test_classes_of_outputs_are_not_needed_where_the_file_is_loaded(tmp_path):
    model = Named(lambda x: Answer(x, Kept(x + 1)))
    written = write(model, example(_0=numbers(6, 3)), tmp_path / "m.pt2")
    assert [each["name"] for each in written.metadata["outputs"]] == ["logits", "extra.state"]
    x = numbers(2, 3)
    found = torch.export.load(tmp_path / "m.pt2").module()(x)
    assert type(found) is dict
    assert found["extra"]["state"].equal(x + 1)
    assert type(model(x)) is Answer  # as before


def test_operators_that_are_not_torchs_are_named(tmp_path):
    assert write(Named(lambda x: x * 2), example(_0=numbers(6, 3)), tmp_path / "a.pt2").metadata["operators"] == []
    written = write(Named(double), example(_0=numbers(6, 3)), tmp_path / "b.pt2")
    assert written.metadata["operators"] == ["export_test.double.default"]


def test_shapes_types_and_ranges_are_said_for_every_input_and_output(tmp_path):
    left = torch.arange(18.0).reshape(6, 3)
    written = write(Pair(), example(_0=left, _1=-left, _2=torch.ones(3)), tmp_path / "m.pt2")
    assert written.metadata["inputs"] == [
        {"name": "left", "shape": ["batch", 3], "dtype": "float32", "given": "by position", "lowest": 0.0, "highest": 17.0, "seen_in": "6 samples"},
        {"name": "right", "shape": ["batch", 3], "dtype": "float32", "given": "by position", "lowest": -17.0, "highest": 0.0, "seen_in": "6 samples"},
        {"name": "scale", "shape": [3], "dtype": "float32", "given": "by position", "lowest": 1.0, "highest": 1.0, "seen_in": "6 samples"},
    ]  # fmt: skip
    assert [(each["name"], each["shape"], each["dtype"]) for each in written.metadata["outputs"]] == [
        ("scores", ["batch", 2], "float32"),
        ("parts.0", ["batch"], "float32"),
        ("parts.1", ["batch"], "int64"),
    ]


def test_an_output_that_loses_its_dimension_with_one_sample_is_said_to_vary(tmp_path):
    x = numbers(6, 3)
    x[0, 0] = float("nan")
    written = write(
        Named(lambda x: (x.squeeze(), x[:, :, None].expand(-1, -1, len(x)))), example(_0=x), tmp_path / "m.pt2"
    )
    assert [each["shape"] for each in written.metadata["outputs"]] == [["varies"], ["batch", 3, "batch"]]
    assert written.metadata["inputs"][0]["lowest"] == x[x.isfinite()].min()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x.reshape(4, 3), r"specialized it to be a constant \(4\)|fails on 1 samples"),
        (lambda x: x if x.sum() > 0 else -x, rf"data-dependent .*: {INSTEAD}"),
        (lambda x: {"none": None}, "returns no tensor for inputs alone"),
        (lambda x: x @ torch.ones(7), "itself fails on 4 samples of inputs alone: RuntimeError"),
        (lambda x: x + torch.rand(1), "With 4 samples: output differs by .* It was removed"),
    ],
)
def test_what_is_no_such_program_is_refused_and_leaves_nothing(tmp_path, capfd, body, message):
    with pytest.raises(RefusedError, match=message):
        write(Named(body), example(_0=numbers(6, 3)), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""  # torch prints the graph so far, on its own


_calls: list[int] = []


@torch.library.custom_op("export_test::four_times", mutates_args=())
def four_times(x: torch.Tensor) -> torch.Tensor:
    _calls.append(len(x))
    if len(_calls) > 4:
        raise RuntimeError("called too often")
    return x * 2


four_times.register_fake(torch.empty_like)


@torch.library.custom_op("export_test::drifting", mutates_args=())
def drifting(x: torch.Tensor) -> torch.Tensor:
    """Give what it gets to the model, four times; to the file something else."""
    _calls.append(len(x))
    if len(_calls) <= 4:
        return x.clone()
    return torch.where(x > 1e3, x + 0.5, x + 1e-5)


drifting.register_fake(torch.empty_like)


def test_a_file_that_fails_when_it_is_run_is_removed(tmp_path):
    _calls.clear()  # the model is run on three sizes, and once to see what it returns; the fifth run is the file's
    with pytest.raises(RefusedError, match=r"It fails on 4 samples: called too often\. It was removed"):
        write(Named(four_times), example(_0=numbers(6, 3)), tmp_path / "m.pt2")
    assert _calls == [4, 1, 3, 4, 4]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_up_meanwhile_is_not_written_over(tmp_path):
    target = tmp_path / "m.pt2"

    def body(x):
        target.write_text("somebody else's")
        return x * 2

    model = Named(body)
    with pytest.raises(RefusedError, match=r"m\.pt2 cannot be written: File exists\. Give another --out\."):
        write(model, example(_0=numbers(6, 3)), target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    assert target.read_text() == "somebody else's"
    write(Named(lambda x: x * 2), example(_0=numbers(6, 3)), target, force=True)
    assert target.stat().st_size > 1000


def test_a_name_that_the_disk_refuses_is_told(tmp_path):
    with pytest.raises(RefusedError, match="cannot be written: File name too long"):
        write_weights({"w": torch.ones(2)}, tmp_path / f"{'m' * 250}.safetensors", {}, force=False)


def test_tied_weights_load_strictly(tmp_path):
    trained, plain = Tied(), Tied()
    write_weights(trained.state_dict(), tmp_path / "m.safetensors", {"step": 3}, force=False)
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert plain.score.weight.equal(trained.read.weight)
    assert plain.score.weight is plain.read.weight


def test_the_tolerance_is_a_share_of_the_largest_number():
    eps = torch.finfo(torch.float32).eps  # 1.2e-7
    mine = {"y": torch.tensor([8.0, 1.0])}
    # 100 steps of 8 are 9.5e-5
    assert compare(mine, {"y": torch.tensor([8.0, 1.0 + 9e-5])}, num_eps=100).problem == ""
    found = compare(mine, {"y": torch.tensor([8.0, 1.0 + 1e-4])}, num_eps=100)
    assert found.problem.startswith("y differs by 0.0001")
    assert found.tolerance == pytest.approx(800 * eps)
    assert found.largest == pytest.approx(1e-4, rel=1e-2)
    nearly_nothing = {"y": torch.tensor([1e-9])}
    assert compare(nearly_nothing, {"y": torch.tensor([0.0])}, num_eps=100).problem == ""


def test_difference_and_tolerance_are_of_the_same_output():
    eps = torch.finfo(torch.float32).eps  # 1.2e-7
    mine = {"large": torch.tensor([1e6]), "small": torch.tensor([1.0])}
    # 100 eps of a million are 11.9, of 1 are 1.19e-5: 0.5 is 4% of what is allowed, 1e-5 is 84%
    found = compare(mine, {"large": torch.tensor([1e6 + 0.5]), "small": torch.tensor([1.0 + 1e-5])}, num_eps=100)
    assert found.problem == ""
    assert found.largest == pytest.approx(1e-5, rel=1e-2)
    assert found.tolerance == pytest.approx(100 * eps)
    found = compare(mine, {"large": torch.tensor([1e6 + 0.5]), "small": torch.tensor([1.1])}, num_eps=100)
    assert found.problem == "small differs by 0.1; at most 1.19e-05 is allowed."
    assert (found.largest, found.ratio) == (pytest.approx(0.1), pytest.approx(0.1 / (100 * eps), rel=1e-3))


def test_of_batches_the_one_nearest_to_its_tolerance_counts(tmp_path):
    _calls.clear()
    x = torch.ones(6, 3)
    x[1] = 1e6  # not in the batch of one sample
    written = write(Named(drifting), example(_0=x), tmp_path / "m.pt2")
    # with four samples 0.5 of 11.9, with one 1e-5 of 1.19e-5
    assert written.agreement.largest == pytest.approx(1e-5, rel=1e-1)
    assert written.agreement.tolerance == pytest.approx(100 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(
    ("mine", "other", "message"),
    [
        (torch.tensor([1]), torch.tensor([2]), "y differs by 1; at most 0"),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), "y is torch.float64 of shape (1,)"),
        (torch.ones(2), torch.ones(3), "the model gives torch.float32 of shape (2,)"),
        (torch.tensor([1.0]), torch.tensor([float("nan")]), "y differs by inf"),
        (torch.tensor([float("inf")]), torch.tensor([1.0]), "y differs by inf"),
        (torch.tensor([1j]), torch.tensor([2j]), "y differs by 1;"),
        (torch.tensor([True]), torch.tensor([False]), "y differs by 1;"),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]), ""),
        (torch.ones(0), torch.ones(0), ""),
    ],
)
def test_outputs_that_disagree_are_told_apart(mine, other, message):
    problem = compare({"y": mine}, {"y": other}, num_eps=100.0).problem
    assert problem.startswith(message) or (message and message in problem)
    assert bool(problem) is bool(message)


def test_other_names_disagree():
    assert compare({"a": torch.ones(1)}, {"b": torch.ones(1)}, num_eps=1.0).problem == "It gives b; the model gives a."


def test_outputs_are_named_by_their_places():
    @dataclass
    class Answer:
        logits: torch.Tensor
        loss: float = 0.0

    one = torch.ones(1)
    assert list(flatten(one)) == ["output"]
    assert list(flatten((one, [one, {"deep": one}]))) == ["output.0", "output.1.0", "output.1.1.deep"]
    assert list(flatten(Answer(one))) == ["logits"]
    assert list(flatten({"a": one, "n": 3, "none": None})) == ["a"]


def recipe(**data):
    return Recipe.model_validate(
        {"model": {"name": "mlp", "sizes": [3, 2]}, "data": {"name": "x:y", **data}, "loss": {"name": "mse"}, "train": {"epochs": 1}}
    )  # fmt: skip


def data(val, train=None):
    return LoadedData(train=train, val=val, origin="here")


def test_inputs_are_what_evaluation_gives_to_the_model_without_the_target():
    x, y = numbers(5, 3), torch.arange(5)
    assert read_example(data((x, y)), recipe()).inputs.keys() == {0}
    assert read_example(data((x, x, y)), recipe()).inputs.keys() == {0, 1}
    named = read_example(data({"ids": x, "mask": x, "labels": y}), recipe())
    assert named.kwargs.keys() == {"ids", "mask"}
    assert named.num_samples == 5
    assert read_example(data([{"ids": x}]), recipe()).kwargs.keys() == {"ids"}
    assert read_example(data(lambda: iter([((x, x), y)])), recipe()).inputs.keys() == {0, 1}
    assert read_example(data(None, train=(x, y)), recipe()).origin == "the first training samples"
    twice = [{"name": "normalize", "mean": 0.0, "std": 0.5}, {"name": "gaussian_noise", "std": 1.0}]
    pictures = x.reshape(5, 1, 1, 3)
    assert read_example(data((pictures, y)), recipe(transforms=twice)).args[0].equal(2 * pictures)


def test_two_samples_become_four_by_coming_again():
    few = read_example(data((torch.tensor([[1.0], [2.0]]), torch.zeros(2))), recipe())
    assert few.of_size(4).args[0].tolist() == [[1.0], [2.0], [1.0], [2.0]]
    assert few.of_size(1).args[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ([], "The validation data hold no batch"),
        ([(["a text"], torch.zeros(1))], r"Input 0 of a batch is a (str|list)\. .* use --format safetensors"),
        ([{"x": 3}], "Input 'x' of a batch is a int"),
        ([(torch.zeros(0, 3), torch.zeros(0))], "A batch of the data holds no sample"),
    ],
)
def test_data_without_inputs_for_a_program_are_refused(val, message):
    with pytest.raises(DataError, match=message):
        read_example(data(val), recipe())


def test_the_reason_is_the_first_sentence_and_the_last_line_of_the_users_code():
    text = 'Could not guard on Eq(u0, 1) (unhinted).  (Size)\n\nmore\n  File "/code/net.py", line 27, in forward\n    if x.sum() > 0:\n'
    assert (
        first_reason(RuntimeError(text))
        == "Could not guard on Eq(u0, 1) (unhinted) (line 27 of net.py: if x.sum() > 0:)."
    )
    violated = (
        "Constraints violated (batch)! For more information, run.\n  - You marked batch as dynamic but it is (4). If\n"
    )
    assert first_reason(RuntimeError(violated)) == "You marked batch as dynamic but it is (4)."
    assert first_reason(KeyError()) == "KeyError."


def test_logs_and_warnings_are_as_before_afterwards():
    with quiet_torch():
        warnings.warn("unheard", stacklevel=1)
        assert not logging.getLogger("torch").isEnabledFor(logging.ERROR)
    assert logging.getLogger("torch").isEnabledFor(logging.ERROR)
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_weights_that_one_onnx_file_cannot_hold_are_refused(tmp_path):
    huge = types.SimpleNamespace(state_dict={"w": torch.zeros(1).expand(600_000_000)})  # 4 bytes each
    with pytest.raises(
        RefusedError, match=rf"2,400,000,000 bytes, and an ONNX file holds 2,000,000,000 at most\. .* {INSTEAD}"
    ):
        save_onnx(huge, tmp_path / "m.onnx", "{}", inputs=["x"], outputs=["y"], instead=INSTEAD)


def test_onnx_names_inputs_outputs_and_the_open_dimension(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnx

    model, inputs = Pair(), example(right=numbers(6, 3), left=2 + numbers(6, 3))
    write(model, inputs, tmp_path / "m.onnx", format="onnx")
    run, _ = read_onnx(tmp_path / "m.onnx", model)
    seven = inputs.of_size(7)
    assert compare(flatten(seven.run(model)), run(seven), num_eps=1000.0).problem == ""
    text = str(onnx.load(tmp_path / "m.onnx"))
    assert 'dim_param: "batch"' in text
    assert 'dim_param: "s' not in text
    assert __file__ not in text


def test_onnx_says_which_operation_it_lacks(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with pytest.raises(RefusedError, match=rf"cannot be written as ONNX: .*{INSTEAD}"):
        write(
            Named(lambda x: torch.linalg.eigvals(x[:, :, None] * x[:, None])),
            example(_0=numbers(6, 3)),
            tmp_path / "m.onnx",
            format="onnx",
        )
    assert list(tmp_path.iterdir()) == []
