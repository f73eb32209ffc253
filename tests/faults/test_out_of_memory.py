"""Memory that runs out (FAULTS 30): said with numbers and a way out, nothing half-done stays; or split, remembered, and resumed."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome as vd
from velodrome.step.memory import is_out_of_memory
from velodrome.testing.memory import MemoryLimit

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))


def make_model(limit: int | None, **arguments: Any) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), MemoryLimit(limit, **arguments), nn.Tanh(), nn.Linear(8, 3))


def make(model: nn.Module, **arguments: Any) -> vd.Trainer:
    given = {"optimizer": "sgd", "lr": 0.1, "loss": "cross_entropy", "device": "cpu", "progress": False, **arguments}
    return vd.Trainer(model, **given)


# -- on_oom="stop" ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "part"), [("forward", "the forward pass"), ("backward", "the backward pass")])
def test_error_names_step_batch_and_ways_out_and_the_weights_are_untouched(where, part, tmp_path):
    model = make_model(8, where=where)
    trainer = make(model, accumulate=2, run_dir=tmp_path / "run", checkpoint="every step")
    # The first window, 4 + 4, is updated; the second one holds a micro-batch when the third batch, of 12, fails.
    data = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[:4], Y[:4]), (X[8:], Y[8:])]
    states = []
    with pytest.raises(vd.errors.OutOfMemoryError) as caught:
        for epoch in trainer.epochs(1):
            for batch in epoch.train(data):
                states.append({name: value.clone() for name, value in model.state_dict().items()})
                outcome = trainer.forward(batch)
                trainer.step(outcome.loss, items=outcome.items)

    text = str(caught.value)
    assert text.startswith(f"Memory ran out in {part} of training, after step 1: a batch of 12 samples (")
    assert ("float32 (12, 6), int64 (12,)" if where == "forward" else "like the first one: float32 (4, 6)") in text
    for way in ("accumulate=", "micro_batch=", "gradient_checkpointing=", 'on_oom="split"', "on cpu"):
        assert way in text
    assert (caught.value.step, caught.value.samples, caught.value.phase) == (1, 12, "train")
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert isinstance(caught.value, MemoryError)
    assert all(torch.equal(states[-1][name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [each.name for each in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000001"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] in ("failed", "stopped")


def test_fit_records_it_as_the_reason(tmp_path):
    trainer = make(make_model(8), run_dir=tmp_path / "run")
    with pytest.raises(vd.errors.OutOfMemoryError, match="a batch of 20 samples"):
        trainer.fit((X, Y), epochs=1, batch_size=20)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], "Memory ran out" in json.dumps(record)) == ("failed", True)


def test_a_loop_may_catch_it_and_go_on_with_smaller_batches():
    model = make_model(8, where="backward")
    trainer = make(model)
    for epoch in trainer.epochs(1):
        for batch in epoch.train([(X, Y), (X[:8], Y[:8])]):
            with suppress(vd.errors.OutOfMemoryError):
                trainer.step(trainer.forward(batch).loss)
    twin = make_model(None)
    F.cross_entropy(twin(X[:8]), Y[:8]).backward()
    assert trainer.progress.steps_done == 1
    for ours, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, other - 0.1 * other.grad)


def test_evaluation_and_prediction_are_named():
    trainer = make(make_model(None, in_evaluation=5))
    with pytest.raises(
        vd.errors.OutOfMemoryError, match=r"the evaluation 'eval', .* of 10 samples .*smaller batch_size"
    ):
        trainer.evaluate((X, Y), batch_size=10)
    with pytest.raises(vd.errors.OutOfMemoryError, match=r"forward pass of prediction, .* of 10 samples"):
        trainer.predict((X, Y), batch_size=10)
    with pytest.raises(vd.errors.OutOfMemoryError, match="the evaluation 'val', after step 2"):
        trainer.fit((X, Y), (X, Y), epochs=1, batch_size=10)


def test_an_optimizer_that_does_not_fit_is_told_apart():
    class Greedy(torch.optim.SGD):
        def step(self, closure=None):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = make_model(None)
    trainer = make(model, optimizer=Greedy(model.parameters(), lr=0.1), lr=None, on_oom="split")
    with pytest.raises(
        vd.errors.OutOfMemoryError, match=r"in the update of training.*What the optimizer keeps.*Tried to allocate 2"
    ):
        trainer.fit((X, Y), epochs=1, batch_size=10)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_allocator_is_recognised(error):
    class Fails(nn.Linear):
        def forward(self, x):
            raise error

    assert is_out_of_memory(error)
    with pytest.raises(vd.errors.OutOfMemoryError) as caught:
        make(Fails(6, 3)).fit((X, Y), epochs=1, batch_size=10)
    assert caught.value.__cause__ is error


def test_a_real_allocation_that_cannot_be_made_is_recognised():
    class Fails(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.empty(2**58).sum()  # 1 EiB: refused without being tried

    with pytest.raises(vd.errors.OutOfMemoryError, match="allocate"):
        make(Fails(6, 3)).fit((X, Y), epochs=1, batch_size=10)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_negative_control_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_the_failed_graph_is_let_go_while_the_error_is_held():
    held = []

    class Fails(nn.Linear):
        def forward(self, x):
            big = super().forward(x)
            held.append(torch.multiprocessing.reductions.StorageWeakRef(big.untyped_storage()))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(vd.errors.OutOfMemoryError) as caught:
        make(Fails(6, 3)).fit((X, Y), epochs=1, batch_size=10)
    assert caught.value.__cause__ is not None
    assert held[0].expired()


# -- on_oom="split" -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_size_is_found_by_halving_said_once_and_remembered(where, capsys):
    model = make_model(3, where=where)
    trainer = make(model, on_oom="split")
    trainer.fit((X, Y), epochs=3, batch_size=10, shuffle=False)
    # 10 -> 5 -> 3, which fits, as 3 + 3 + 2 + 2; the other five batches go that way at once.
    parts = [3, 3, 2, 2]
    assert model[1].sizes == [10, 5, *parts, *parts * 5]
    said = [line for line in capsys.readouterr().err.splitlines() if "Memory ran out" in line]
    assert len(said) == 1
    assert "at most 3 samples go through the model at once; this batch of 10 went in 4 parts" in said[0]
    assert "BatchNorm" not in said[0]
    assert "Dropout" not in said[0]


def test_batchnorm_and_dropout_are_mentioned(capsys):
    model = nn.Sequential(MemoryLimit(5), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
    make(model, on_oom="split").fit((X, Y), epochs=1, batch_size=10)
    said = capsys.readouterr().err
    assert "BatchNorm sees a part" in said
    assert "Dropout draws its masks part by part" in said


def test_training_and_evaluation_have_sizes_of_their_own():
    trainer = make(make_model(4, in_evaluation=9), on_oom="split", metrics=["accuracy"])
    trainer.fit((X, Y), (X, Y), epochs=1, batch_size=10)
    assert trainer._engine.part_sizes == {"train": 3, "evaluation": 5}  # 10 -> 5 -> 3, and 20 -> 10 -> 5


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_single_sample_that_does_not_fit_stops_after_few_halvings(where):
    model = make_model(0, where=where)
    trainer = make(model, on_oom="split", accumulate=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(vd.errors.OutOfMemoryError, match="A single sample does not fit") as caught:
        trainer.fit((X, Y), epochs=1, batch_size=16)
    assert 'on_oom="split"' not in str(caught.value)
    assert model[1].sizes == [16, 8, 4, 2, 1]  # log2(16) halvings
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (((X, X[:7]), Y), r"have 7, 20 as their first dimension"),
        (([{"boxes": X}], Y), "a list of dicts, one for each sample"),
        (([torch.randn(3, 6)] * 3, Y[:3]), "a list of 3 tensors, some with 3 as their first dimension"),
        ((X.to_sparse(), Y), "nested or sparse tensor"),
        ((nn.utils.rnn.pack_sequence([X[:4], X[:2]]), Y), "holds a PackedSequence"),
    ],
    ids=["lengths", "dicts", "list", "sparse", "pack"],
)
def test_a_batch_whose_samples_are_in_doubt_is_not_cut(batch, reason, where):
    limit = MemoryLimit(1, where=where)
    head = nn.Linear(6, 3)

    def step(model, batch):
        return F.cross_entropy(model(limit(X)), Y)

    trainer = make(head, loss=None, step_fn=step, on_oom="split")
    if where == "backward":
        limit.forward = lambda x: MemoryLimit.forward(limit, x.clone().requires_grad_())
    with pytest.raises(vd.errors.OutOfMemoryError, match=reason):
        trainer.fit([batch], epochs=1)


def test_outputs_without_a_row_a_sample_cannot_be_put_together():
    class Summary(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(0, keepdim=True).expand(3, -1)

    trainer = vd.Trainer(
        Summary(MemoryLimit(None, in_evaluation=10)), None, device="cpu", progress=False, on_oom="split"
    )
    with pytest.raises(vd.errors.OutOfMemoryError, match=r"returned \(3, 6\) for 10 samples: without a row for each"):
        trainer.predict(X, batch_size=20)


def test_a_loss_computed_outside_of_forward_cannot_be_split_and_says_why():
    trainer = make(make_model(8, where="backward"), on_oom="split")
    with pytest.raises(vd.errors.OutOfMemoryError, match=r"not computed by trainer\.forward\(batch\) alone"):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train([(X, Y)]):
                trainer.step(F.cross_entropy(trainer.model(x), y))


def test_batchnorm_that_would_see_one_sample_is_the_reason():
    model = nn.Sequential(MemoryLimit(1), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(vd.errors.OutOfMemoryError, match="BatchNorm cannot train on a part of one sample"):
        make(model, on_oom="split").fit((X, Y), epochs=1, batch_size=10)


def test_attempts_that_failed_leave_no_trace_in_buffers_and_random_numbers():
    """The numbers are those of a run that knew the size from the start: statistics of BatchNorm, and masks of dropout."""
    weights = []
    for known in (False, True):
        for where in ("forward", "backward"):
            torch.manual_seed(3)
            model = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), MemoryLimit(4, where=where), nn.Linear(8, 3)
            )
            trainer = make(model, on_oom="split", seed=1, metrics=["accuracy"])
            if known:
                trainer._engine.part_sizes["train"] = 3
            result = trainer.fit((X, Y), epochs=2, batch_size=10)
            weights.append((model.state_dict(), result.metrics["train/loss"], result.metrics["train/accuracy"]))
            assert model[1].num_batches_tracked == 4 * 4  # 2 epochs of 2 batches of 4 parts
    for state, *values in weights[1:]:
        assert values == list(weights[0][1:])
        assert all(map(torch.equal, weights[0][0].values(), state.values()))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_window_keeps_the_gradients_of_earlier_micro_batches(where):
    model = make_model(5, where=where).double()
    twin = make_model(None).double()
    x = X.double()
    trainer = make(model, accumulate=3, on_oom="split")
    trainer.fit([(x[:4], Y[:4]), (x[4:16], Y[4:16]), (x[16:], Y[16:])], epochs=1)
    F.cross_entropy(twin(x), Y).backward()
    assert trainer.progress.steps_done == 1
    for ours, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, other - 0.1 * other.grad, rtol=1e-12, atol=1e-15)


def test_backpropagating_twice_is_refused():
    trainer = make(make_model(5), on_oom="split")
    with pytest.raises(RuntimeError, match="a second time"):
        for epoch in trainer.epochs(1):
            for batch in epoch.train([(X, Y)]):
                loss = trainer.forward(batch).loss
                trainer.step(loss)
                trainer.step(loss)


def test_a_loss_that_is_no_scalar_is_refused_in_parts_too():
    trainer = make(
        make_model(5), loss=lambda output, target: F.cross_entropy(output, target, reduction="none"), on_oom="split"
    )
    with pytest.raises(vd.errors.ArgumentError, match=r"loss of shape \(5,\).*take its mean"):
        trainer.fit((X, Y), epochs=1, batch_size=10)


def test_labels_out_of_range_are_refused_in_parts_too():
    labels = Y.clone()
    labels[19] = 7  # in the last part
    trainer = make(make_model(5), on_oom="split")
    with pytest.raises(vd.errors.DataError, match="label 7"):
        trainer.fit([(X, labels)], epochs=1)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"on_oom": "halve"}, "on_oom='halve' is unknown.*Known: split, stop"),
        ({"on_oom": None}, "on_oom=None"),
    ],
)
def test_other_modes_are_refused(arguments, fragment):
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        make(make_model(None), **arguments)


def test_what_parts_cannot_do_is_refused():
    from velodrome.step.splitting import check_can_split

    with pytest.raises(vd.errors.ArgumentError, match="CUDA graphs"):
        check_can_split(make_model(None), processes=1, reuses_memory=True)
    synchronised = nn.Sequential(nn.Linear(6, 8), nn.SyncBatchNorm(8))
    with pytest.raises(vd.errors.ArgumentError, match="2 processes.*SyncBatchNorm"):
        check_can_split(synchronised, processes=2, reuses_memory=False)
    check_can_split(synchronised, processes=1, reuses_memory=False)


# -- resume -------------------------------------------------------------------------------------------------------------


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    def __init__(self, step):
        self.step = step

    def on_checkpoint(self, trainer, path):
        if trainer.progress.steps_done >= self.step:
            raise Cut


class Forgetful(dict):
    """Takes nothing from a checkpoint."""

    def update(self, *others):
        pass


def run(folder, where, *, cut_at=math.inf, forget=False, **arguments):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        MemoryLimit(5, where=where, in_evaluation=6),
        nn.Linear(8, 3),
    )
    trainer = make(
        model, optimizer="adam", lr=0.02, on_oom="split", seed=1, metrics=["accuracy"], run_dir=folder, checkpoint="every step", loggers=[],
        callbacks=[CutAt(cut_at)], accumulate=2, **arguments,
    )  # fmt: skip
    if forget:
        trainer._engine.part_sizes = Forgetful()
    # 12 samples are halved twice, to 3; then 7 go as 3 + 2 + 2, where they would be halved to 4 + 3 by a run that had forgotten.
    data = [(X[:12], Y[:12]), (X[12:19], Y[12:19]), (X[:7], Y[:7]), (X[7:19], Y[7:19])]
    result = trainer.fit(data, (X, Y), epochs=2)
    return trainer, [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in result.history]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_run_that_was_cut_ends_like_the_one_that_was_not(where, tmp_path):
    straight, history = run(tmp_path / "straight", where)
    assert straight.progress.steps_done == 4
    for step in (1, 2, 3, 4):
        with pytest.raises(Cut):
            run(tmp_path / str(step), where, cut_at=step)
        again, rows = run(tmp_path / str(step), where, resume="auto")
        assert rows == history
        assert all(map(torch.equal, straight.model.state_dict().values(), again.model.state_dict().values()))
        assert not {12, 7} & set(again.model[3].sizes)  # no training batch is tried whole again
        assert again._engine.part_sizes == {"train": 3, "evaluation": 5}


def test_negative_control_a_run_that_forgot_the_size_ends_differently(tmp_path):
    straight, _ = run(tmp_path / "straight", "forward")
    with pytest.raises(Cut):
        run(tmp_path / "cut", "forward", cut_at=3)
    again, _ = run(tmp_path / "cut", "forward", resume="auto", forget=True)
    assert not all(map(torch.equal, straight.model.state_dict().values(), again.model.state_dict().values()))


# -- several processes --------------------------------------------------------------------------------------------------


def train_together(limits):
    """Train with a limit for each process; return the weights, and the sizes that this process saw."""
    model = make_model(limits[int(os.environ.get("RANK", "0"))]).double()
    trainer = make(model, on_oom="split", accumulate=2, seed=0)
    result = trainer.fit((X.double(), Y), (X.double(), Y), epochs=2, batch_size=10, eval_batch_size=10)
    return (
        [parameter.detach().clone() for parameter in model.parameters()],
        model[1].sizes,
        result.metrics["train/loss"],
    )


def test_each_process_splits_its_own_part_of_the_batch(two):
    alone, _, loss = train_together([None])
    for weights, _, mean in (answers := two.run(train_together, [None, 2])):
        assert mean == pytest.approx(loss, rel=1e-12)
        for ours, other in zip(weights, alone, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-14)
    # Each has 5 of 10 samples; the second one halves them to 3, then 2: as 2 + 2 + 1.
    assert answers[0][1][:2] == [5, 5]
    assert answers[1][1][:8] == [5, 3, 2, 2, 1, 2, 2, 1]
