"""What is wrong with model, loss or data is said at the start or with the first batch, with the numbers (FAULTS 26 to 29)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from velodrome.errors import ArgumentError, DataError

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
ASSERTION = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API call"


def make(model: nn.Module, **arguments) -> vd.Trainer:
    given = {"optimizer": "sgd", "lr": 0.1, "loss": "cross_entropy", "device": "cpu", "progress": False, **arguments}
    return vd.Trainer(model, **given)


# -- 26: the loss is no scalar, has no gradient, or is of a wrong type ------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda output, target: F.cross_entropy(output, target, reduction="none"),
            r"gave a loss of shape \(4,\)\. .*take its mean",
        ),
        (
            lambda output, target: F.cross_entropy(output, target).item(),
            "gave a float as loss. It must be a scalar tensor",
        ),
        (
            lambda output, target: F.cross_entropy(output.detach(), target),
            r"gave a loss without a gradient\. Do not detach",
        ),
        (lambda output, target: (F.cross_entropy(output, target), output), "gave a tuple as loss"),
    ],
    ids=["vector", "number", "detached", "tuple"],
)
@pytest.mark.parametrize("on_oom", ["stop", "split"])
def test_26_loss_that_cannot_be_backpropagated_is_named_with_what_it_gave(loss, message, on_oom):
    model = nn.Linear(6, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=f"loss '<lambda>' {message}"):
        make(model, loss=loss, on_oom=on_oom).fit((X, Y), batch_size=4, epochs=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: {"value": loss}, 'step_fn returned a dict without a loss tensor.*a dict with "loss"'),
        (lambda loss: None, "step_fn returned a NoneType without a loss tensor"),
        (lambda loss: loss.expand(2), r"step_fn returned a tensor of shape \(2,\), which is no loss"),
    ],
)
def test_26_step_fn_that_returns_no_loss_is_named(result, message):
    step = lambda model, batch: result(F.cross_entropy(model(batch[0]), batch[1]))  # noqa: E731
    with pytest.raises(ArgumentError, match=message):
        make(nn.Linear(6, 3), loss=None, step_fn=step).fit((X, Y), batch_size=4, epochs=1)


# -- 27: a label out of range, an assertion on the device --------------------------------------------------------------------


def test_27_label_out_of_range_is_refused_with_range_and_classes_before_the_first_update():
    labels = Y.clone()
    labels[10] = 3  # not in the first batch: data in memory are looked at whole
    model = nn.Linear(6, 3)
    before = model.weight.detach().clone()
    with pytest.raises(
        DataError, match=r"train label 3 at sample 10 is out of range.*3 outputs, so labels must be 0\.\.2"
    ):
        make(model).fit((X, labels), batch_size=4, epochs=1, shuffle=False)
    assert torch.equal(model.weight, before)


class Asserts(nn.Module):
    """Does what a kernel does that met a bad index, in the call of this number, in the forward or in the backward pass."""

    def __init__(self, call: int, where: str) -> None:
        super().__init__()
        self.layer, self.call, self.where, self.calls = nn.Linear(6, 3), call, where, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.call and self.where == "forward":
            raise RuntimeError(ASSERTION)
        output = self.layer(x)
        if self.calls == self.call:
            output.register_hook(self.fail)
        return output

    def fail(self, gradient):
        raise RuntimeError(ASSERTION)


def test_27_assertion_on_the_device_in_the_first_batch_comes_with_the_batch_and_a_hint():
    with pytest.raises(
        DataError, match=r"input is float32 \(4, 6\).*index out of range.*CUDA_LAUNCH_BLOCKING=1.*start it anew"
    ) as caught:
        make(Asserts(1, "forward")).fit((X, Y), batch_size=4, epochs=1)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_27_later_assertions_on_the_device_get_the_hint_once(where, tmp_path):
    with pytest.raises(RuntimeError, match="device-side assert") as caught:
        make(Asserts(2, where), run_dir=tmp_path / "run").fit((X, Y), batch_size=4, epochs=1)
    (note,) = caught.value.__notes__
    assert "CUDA_LAUNCH_BLOCKING=1" in note
    assert 'device="cpu"' in note
    assert "CUDA_LAUNCH_BLOCKING=1" in (tmp_path / "run" / "log.txt").read_text()


def test_27_negative_control_other_errors_have_no_hint():
    class Fails(nn.Linear):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        make(Fails(6, 3)).fit((X, Y), batch_size=4, epochs=1)
    assert not hasattr(caught.value, "__notes__")


# -- 28: types, shapes and devices that do not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "loss", "message"),
    [
        (X.double(), Y, "cross_entropy", r"float64 \(4, 6\) on cpu, .*float32 \(3, 6\) on cpu.*\.to\(torch\.float32\)"),
        (X[:, :5], Y, "cross_entropy", r"input is float32 \(4, 5\)"),
        (X, Y.float(), "cross_entropy", r"torch\.float32 train targets .*\.long\(\)"),
        (X, Y.int(), "cross_entropy", r"int32 train targets.*int64.*\.long\(\)"),
        (X, X[:, 0], "mse", r"outputs of shape \(4, 3\) and train targets of shape \(4,\)"),
        (X, Y[:, None].expand(12, 3), "mse", r"int64 train targets.*\.float\(\)"),
    ],
    ids=["dtype of inputs", "width", "float labels", "int32 labels", "shape of targets", "whole numbers"],
)
def test_28_first_batch_that_does_not_fit_is_reported_with_shapes_and_types(x, y, loss, message):
    model = nn.Linear(6, 3)
    before = model.weight.detach().clone()
    with pytest.raises(DataError, match=message):
        make(model, loss=loss).fit((x, y), batch_size=4, epochs=1)
    assert torch.equal(model.weight, before)


def test_28_column_against_row_is_refused_before_it_broadcasts():
    with pytest.raises(
        DataError, match=r"they would broadcast to \(4, 4\), a wrong loss in silence.*target\.unsqueeze\(1\)"
    ):
        make(nn.Linear(6, 1), loss="mse").fit((X, X[:, 0]), batch_size=4, epochs=1)


def test_28_parts_on_several_devices_are_reported():
    with pytest.raises(DataError, match=r"input is float32 \(4, 6\) on meta, .* on cpu\. All must be on one device"):
        make(nn.Linear(6, 3)).fit([(X[:4].to("meta"), Y[:4])], epochs=1)


# -- 29: parameters that will not be trained ----------------------------------------------------------------------------------


def test_29_parameters_in_no_group_are_named_at_the_start(capsys):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    said = []

    class Listen(vd.Callback):
        def on_fit_start(self, trainer):
            said.append(capsys.readouterr().err)

    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    make(model, optimizer=optimizer, lr=None, callbacks=[Listen()]).fit((X, Y), batch_size=4, epochs=1)
    assert (
        "2 parameters (0.weight, 0.bias) can be trained, but no optimizer holds them: they will not change" in said[0]
    )
    assert "name them in freeze=" in said[0]


def test_29_optimizer_over_parameters_of_before_is_told_at_the_start(capsys):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(4, 3)  # the head is replaced after the optimizer was made
    make(model, optimizer=optimizer, lr=None).fit((X, Y), batch_size=4, epochs=1)
    said = capsys.readouterr().err
    assert "2 parameters (1.weight, 1.bias) can be trained, but no optimizer holds them" in said
    assert (
        "none of the model's: if layers were replaced after it was made, make it anew from model.parameters()" in said
    )


def test_29_frozen_parameters_that_an_optimizer_holds_are_in_the_log(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    make(model, optimizer=optimizer, lr=None, run_dir=tmp_path / "run").fit((X, Y), batch_size=4, epochs=1)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "2 parameters (0.weight, 0.bias) are held by an optimizer, but frozen: they will not change." in log


@pytest.mark.parametrize("on_oom", ["stop", "split"])
def test_29_parameters_that_the_loss_does_not_use_are_named_with_the_first_update(capsys, on_oom):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    make(Half(), on_oom=on_oom).fit((X, Y), batch_size=4, epochs=2)
    said = capsys.readouterr().err
    assert said.count("2 parameters (unused.weight, unused.bias) got no gradient from the first batch") == 1


def test_29_a_model_that_is_trained_whole_says_nothing(capsys):
    make(nn.Linear(6, 3)).fit((X, Y), (X, Y), batch_size=4, epochs=1)
    assert capsys.readouterr().err == ""
