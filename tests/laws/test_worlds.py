"""Law: one process and many run the same lines, and get the same numbers: gradients, losses and metrics, for any size of data.

All in float64. Weights and means agree to a relative 1e-12: sums are made in another order, and nothing else differs.
"""

import contextlib
import warnings
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import velodrome as vd
from velodrome.testing.torchvision_cpu import import_torchvision

pytestmark = pytest.mark.slow

BATCH = 3  # no multiple of either world, and smaller than one process's share would need
WORLDS = ["two", "three"]
TOLERANCE = {"rtol": 1e-12, "atol": 1e-13}

SETTINGS = {
    "plain": {},
    "accumulate": {"accumulate": 3},
    "accumulate and clip": {"accumulate": 2, "clip_norm": 0.05, "optimizer": "adam", "lr": 0.1},
    "tokens": {"accumulate": 2, "step_fn": True},
    "samples": {"as_dataset": True},
}


@pytest.fixture(params=WORLDS)
def processes(request):
    return request.getfixturevalue(request.param)


class Model(nn.Module):
    """One probability a sample; `unused` never gets a gradient, `late` only where the input is positive."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        # A probability: of logits torchmetrics takes the sigmoid only where a batch holds one outside of 0..1.
        return torch.sigmoid(self.head(torch.tanh(self.body(x)))).squeeze(1)


def make_data(num_samples):
    generator = torch.Generator().manual_seed(num_samples)
    x = torch.randn(num_samples, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (num_samples,), generator=generator).double()
    return x, y


class Samples(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def token_step(model, batch):
    """Count only some of the samples: those with a positive first number, which may be none of a batch."""
    x, y = batch
    output = model(x)
    mask = (x[:, 0] > 0).double()
    loss = (F.binary_cross_entropy(output, y, reduction="none") * mask).sum() / mask.sum().clamp(min=1)
    return {"loss": loss, "output": output, "target": y, "items": mask.sum()}


def train(num_samples, settings):
    """Train for two epochs, and evaluate; return weights, history without times, and steps."""
    import_torchvision_where_it_is()
    from torchmetrics.classification import BinaryAUROC

    settings = dict(settings)
    x, y = make_data(num_samples)
    data = Samples(x, y) if settings.pop("as_dataset", False) else (x, y)
    tokens = settings.pop("step_fn", False)
    arguments = {"optimizer": "sgd", "lr": 0.3, "optimizer_args": {} if "optimizer" in settings else {"momentum": 0.9}}
    trainer = vd.Trainer(
        Model(),
        **{**arguments, **settings},
        loss=None if tokens else "bce",
        step_fn=token_step if tokens else None,
        metrics={"accuracy": accuracy, "auroc": BinaryAUROC()},
        seed=3,
        device="cpu",
        progress=False,
        log_every="2 steps",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchmetrics, when there is one class only
        result = trainer.fit(data, (x, y), batch_size=BATCH, eval_batch_size=5, epochs=2)
    history = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in result.history]
    return (
        [parameter.detach().clone() for parameter in trainer.model.parameters()],
        history,
        trainer.progress.steps_done,
    )


def accuracy(output, target):
    return ((output > 0.5) == (target > 0.5)).double()


def import_torchvision_where_it_is():
    with contextlib.suppress(ImportError):
        import_torchvision()


def train_all(cases):
    return [train(*case) for case in cases]


def assert_same(got, expected, case):
    weights, history, steps = got
    torch.testing.assert_close(weights, expected[0], **TOLERANCE, msg=lambda text: f"{case}: {text}")
    assert [row.keys() for row in history] == [row.keys() for row in expected[1]], case
    for row, wanted in zip(history, expected[1], strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-13, nan_ok=True), case
    assert steps == expected[2], case


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_size_of_data_gives_the_weights_and_metrics_of_one_process(processes, settings):
    sizes = range(1, 2 * processes.size * BATCH + 2)
    cases = [(size, settings) for size in sizes]
    by_rank = processes.run(train_all, cases)
    for case, *results in zip(cases, *by_rank, strict=True):
        expected = train(*case)
        for result in results:
            assert_same(result, expected, case)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result[0], results[0][0], strict=True)), case


# -- data that divide themselves, unevenly -------------------------------------------------------------------------------


class Shard:
    """The batches of one process; `is_sharded` says so."""

    is_sharded = True

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


LENGTHS = [[3, 1], [1, 4, 2], [], [2, 2, 5, 1, 3]]  # samples of each batch of each rank, in turn


def shards(size):
    """Return the batches of each rank; one has none at all."""
    generator = torch.Generator().manual_seed(1)
    return [
        [(torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.randint(0, 2, (n,), generator=generator).double()) for n in LENGTHS[-1 - rank]]
        for rank in range(size)
    ]  # fmt: skip


def train_shards(accumulate, size=0):
    """Train on the shard of this rank; with a size, in one process on what all ranks of such a world have at each step."""
    from velodrome.distributed.world import join_world

    world = join_world(torch.device("cpu"))
    parts = shards(size or world.size)
    if size:
        steps = max(map(len, parts))
        held = [[part[step] for part in parts if step < len(part)] for step in range(steps)]
        batches = [tuple(torch.cat(column) for column in zip(*together, strict=True)) for together in held]
    else:
        batches = parts[world.rank]
    trainer = vd.Trainer(
        Model(), "sgd", lr=0.3, optimizer_args={"momentum": 0.9}, loss="bce", metrics={"accuracy": accuracy},
        accumulate=accumulate, clip_norm=0.1, device="cpu", progress=False, log_every="1 steps",
    )  # fmt: skip
    result = trainer.fit(Shard(batches), Shard(batches), epochs=2)
    history = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in result.history]
    return (
        [parameter.detach().clone() for parameter in trainer.model.parameters()],
        history,
        trainer.progress.steps_done,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_uneven_shards_take_part_until_the_last_one_is_done(processes, accumulate):
    expected = train_shards(accumulate, processes.size)
    assert expected[2] == 2 * -(-5 // accumulate)  # the longest shard has five batches
    for result in processes.run(train_shards, accumulate):
        assert_same(result, expected, accumulate)


def leave_early(accumulate):
    """Leave the loop by break: rank 1 never begins, the others go on to the end; all evaluate."""
    from velodrome.distributed.world import join_world

    world = join_world(torch.device("cpu"))
    trainer = vd.Trainer(Model(), "sgd", lr=0.3, accumulate=accumulate, device="cpu", progress=False)
    x, y = make_data(12)
    for epoch in trainer.epochs(2):
        for done, (a, b) in enumerate(epoch.train((x, y), batch_size=3)):
            if world.rank == 1 and done == 0:
                break
            trainer.step(F.binary_cross_entropy(trainer.model(a), b))
        for a, b in epoch.evaluate((x, y), batch_size=5):
            trainer.log(loss=F.binary_cross_entropy(trainer.model(a), b))
    assert [row["val/loss"] > 0 for row in trainer.result.history] == [True, True]
    return [parameter.detach() for parameter in trainer.model.parameters()], trainer.progress.steps_done


def test_a_loop_that_one_process_leaves_early_goes_on_in_the_others(processes):
    results = processes.run(leave_early, 2)
    for weights, steps in results:
        assert steps == 4  # two epochs of two windows of two
        assert all(torch.equal(a, b) for a, b in zip(weights, results[0][0], strict=True))


# -- several optimizers, stops, traffic ----------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Model(), Model()


def train_pair(size=0):
    """Two optimizers in turn, `b` every second batch; shards of unequal length."""
    from velodrome.distributed.world import join_world

    world = join_world(torch.device("cpu"))
    parts = shards(size or world.size)
    if size:
        held = [[part[step] for part in parts if step < len(part)] for step in range(max(map(len, parts)))]
        batches = [tuple(torch.cat(column) for column in zip(*together, strict=True)) for together in held]
    else:
        batches = parts[world.rank]
    model = Pair()
    trainer = vd.Trainer(model, {"a": "sgd", "b": "adam"}, lr=0.1, clip_norm=1.0, device="cpu", progress=False)
    for epoch in trainer.epochs(1):
        for index, (x, y) in enumerate(epoch.train(Shard(batches))):
            trainer.step(F.binary_cross_entropy(model.a(x), y), optimizer="a")
            if index % 2:
                trainer.step(F.binary_cross_entropy(model.b(x), y), optimizer="b")
    return [parameter.detach() for parameter in model.parameters()], [], trainer.progress.steps_done


def test_several_optimizers_take_their_turns_together(processes):
    expected = train_pair(processes.size)
    assert expected[2] == 5 + 2
    for result in processes.run(train_pair):
        assert_same(result, expected, "pair")


def count_traffic(accumulate, dtype):
    """Return how many collectives each micro-batch of an epoch made, and how many the whole run."""
    from velodrome.distributed.world import join_world
    from velodrome.stopping import listening

    world = join_world(torch.device("cpu"))
    x, y = make_data(24)
    trainer = vd.Trainer(Model().to(dtype), "sgd", lr=0.1, accumulate=accumulate, device="cpu", progress=False)
    counts = []
    # Whether to stop is asked about once a second, and at first after a step; that is counted in a test of its own.
    listening.FIRST_EVERY, kept = 1000, listening.FIRST_EVERY
    for epoch in trainer.epochs(1):
        for a, b in epoch.train((x.to(dtype), y.to(dtype)), batch_size=4, shuffle=False):
            before = world.num_collectives
            trainer.step(F.binary_cross_entropy(trainer.model(a), b))
            counts.append(world.num_collectives - before)
    listening.FIRST_EVERY = kept
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_is_one_collective_and_nothing_is_sent_inside_a_window(processes, dtype):
    assert processes.run(count_traffic, 1, dtype) == [[1] * 6] * processes.size
    assert processes.run(count_traffic, 3, dtype) == [[0, 0, 1, 0, 0, 1]] * processes.size


class StopAt(vd.Callback):
    """Ask for the end at a step, in one process only."""

    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def on_step_end(self, trainer):
        from velodrome.distributed.world import join_world

        if join_world(torch.device("cpu")).rank == self.rank and trainer.progress.steps_done == self.step:
            trainer.stop()


def stop_or_run_out(limits, callback):
    x, y = make_data(40)
    trainer = vd.Trainer(
        Model(), "sgd", lr=0.1, loss="bce", device="cpu", progress=False, log_every="5 steps",
        callbacks=[StopAt(*callback)] if callback else [],
    )  # fmt: skip
    result = trainer.fit((x, y), batch_size=4, **limits)
    progress = trainer.progress
    return progress.steps_done, progress.epochs_done, progress.samples_done, result.stop_reason.name


def test_all_processes_stop_at_the_same_step_and_count_all_samples(processes):
    same = processes.size
    assert processes.run(stop_or_run_out, {"steps": 13}, None) == [(13, 1, 52, "STEPS")] * same
    assert processes.run(stop_or_run_out, {"epochs": 2}, (1, 3)) == [(5, 0, 20, "REQUESTED")] * same
    by_time = processes.run(stop_or_run_out, {"seconds": 0.3}, None)
    assert len(set(by_time)) == 1
    assert by_time[0][0] % 5 == 0
    assert by_time[0][3] == "SECONDS"


def dropout_and_order():
    """Return what dropout draws in training, and which samples came, with and without a seed."""
    result = []
    for seed in (None, 4):
        trainer = vd.Trainer(nn.Linear(1, 1), "sgd", lr=0.0, seed=seed, device="cpu", progress=False)
        numbers = torch.arange(12.0).unsqueeze(1)
        for epoch in trainer.epochs(1):
            seen = []
            for (x,) in epoch.train((numbers,), batch_size=6):
                seen += x.flatten().tolist()
                trainer.step(trainer.model(x).sum())
            result.append(
                (seen, F.dropout(torch.ones(50)).tolist(), [p.detach().tolist() for p in trainer.model.parameters()])
            )
    return result


def test_processes_share_the_order_and_the_weights_and_have_dropout_of_their_own(processes):
    results = processes.run(dropout_and_order)
    for per_rank in zip(*results, strict=True):
        assert sorted(number for seen, _, _ in per_rank for number in seen) == list(range(12))
        assert len({str(dropped) for _, dropped, _ in per_rank}) == processes.size
        assert len({str(weights) for _, _, weights in per_rank}) == 1


def write_files(folder):
    x, y = make_data(10)
    result = vd.fit(
        Model(), (x, y), (x, y), loss="bce", optimizer="sgd", lr=0.1, epochs=2, batch_size=4, run_dir=f"{folder}/run",
        checkpoint="every 4 samples", log_every="1 steps", device="cpu", progress=False, seed=0,
    )  # fmt: skip
    return result.run_dir, len(result.history)


def test_one_process_writes(processes, tmp_path):
    results = processes.run(write_files, str(tmp_path))
    assert results[0] == (tmp_path / "run", 2)
    assert results[1:] == [(None, 2)] * (processes.size - 1)
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors").exists()


def differ():
    from velodrome.distributed.world import join_world

    rank = join_world(torch.device("cpu")).rank
    messages = []
    for arguments in ({"accumulate": 1 + rank}, {"model": nn.Linear(1, 2 + rank)}):
        trainer = vd.Trainer(**{"model": nn.Linear(1, 2), "lr": 0.1, "device": "cpu", "progress": False, **arguments})
        try:
            next(trainer.epochs(1))
        except vd.errors.WorldError as error:
            messages.append(str(error))
    return messages


def test_processes_that_do_not_run_the_same_are_refused(processes):
    for settings, model in processes.run(differ)[1:]:
        assert "The setting 'optimizers' is ['optimizer: Adam, accumulate=1'] in rank 0 and" in settings
        assert "The model's 'weight' is (2, 1) torch.float32 in rank 0 and (" in model


def statistics():
    """Train with BatchNorm; return its statistics and the weights saved with them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    trainer = vd.Trainer(model, "sgd", lr=0.1, loss="cross_entropy", seed=0, device="cpu", progress=False)
    result = trainer.fit((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()), epochs=1, batch_size=6)
    return model[1].running_mean.tolist(), result.metrics["val/loss"]


def test_statistics_of_batch_norm_are_those_of_rank_0_in_every_process(processes):
    results = processes.run(statistics)
    assert all(result == results[0] for result in results)


# -- negative controls ---------------------------------------------------------------------------------------------------


def train_wrongly(how, num_samples):
    from velodrome.distributed.process_world import ProcessWorld

    right = ProcessWorld.sum_gradients
    if how == "mean of means":  # what averaging over processes makes of slices of unequal size

        def wrong(world, parameters, extras):
            for parameter in parameters:
                if parameter.grad is not None and extras[0] > 0:
                    parameter.grad /= extras[0]
            totals = right(world, parameters, extras)
            totals[0] = totals[1]
            return totals

    else:  # each for itself

        def wrong(world, parameters, extras):
            held = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
            totals = right(world, parameters, extras)
            for parameter, grad in zip(parameters, held, strict=True):
                parameter.grad = grad
            return totals

    with mock.patch.object(ProcessWorld, "sum_gradients", wrong):
        return train(num_samples, {})


@pytest.mark.parametrize("how", ["mean of means", "each for itself"])
def test_negative_control_wrong_sums_change_the_weights(processes, how):
    expected = train(7, {})
    for result in processes.run(train_wrongly, how, 7):
        with pytest.raises(AssertionError):
            assert_same(result, expected, how)


def evaluate_padded(num_samples):
    """Evaluate with PyTorch's sampler, which repeats samples until all shards are equal."""
    from torch.utils.data.distributed import DistributedSampler

    data = Samples(*make_data(num_samples))
    trainer = vd.Trainer(Model(), None, loss="bce", metrics={"accuracy": accuracy}, device="cpu", progress=False)
    trainer.evaluate(vd.DataLoader(data, 3))  # joins the world
    padded = trainer.evaluate(vd.DataLoader(data, 3, sampler=DistributedSampler(data, shuffle=False)))
    return trainer.evaluate(vd.DataLoader(data, 3)), padded


def test_negative_control_padded_duplicates_change_the_metrics(processes):
    x, y = make_data(7)
    expected = vd.evaluate(Model(), (x, y), loss="bce", metrics={"accuracy": accuracy}, batch_size=3, device="cpu")
    for exact, padded in processes.run(evaluate_padded, 7):
        assert exact == pytest.approx(expected, rel=1e-12)
        assert padded["loss"] != pytest.approx(expected["loss"], rel=1e-6)
