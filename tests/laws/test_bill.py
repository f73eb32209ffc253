"""The bill: its parts sum to the wall time of the run, whatever goes on in it; what is slow is named."""

import json
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from velodrome import Callback, Checkpointing, DataLoader, Trainer, fit
from velodrome.data import choosing
from velodrome.errors import ArgumentError
from velodrome.record.clock import Clock

X, LABELS = torch.randn(240, 4), torch.randint(0, 3, (240,))
NAP_S = 0.002


class SlowScans(Dataset):
    """Gives a sample after a while."""

    def __init__(self, seconds=NAP_S):
        self.seconds = seconds

    def __len__(self):
        return 48

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return X[index], LABELS[index]


class Stopwatch(Callback):
    """Measures a run on its own: from the first callback to the last, with a clock that the bill has nothing to do with."""

    def on_fit_start(self, trainer):
        self.billed_before = sum(trainer.result.bill.parts.values())
        self.began = time.monotonic()

    def on_fit_end(self, trainer):
        self.measured = time.monotonic() - self.began


class Uploads(Callback):
    """Takes its time after every step."""

    def on_step_end(self, trainer):
        time.sleep(NAP_S)


def train(data=(X, LABELS), val=None, *, epochs=2, batch_size=8, **arguments):
    model = nn.Linear(4, 3)
    arguments = {"loss": "cross_entropy", "metrics": ["accuracy"], "progress": False, "device": "cpu"} | arguments
    if "step_fn" in arguments:
        arguments |= {"loss": None, "metrics": []}
    size = {} if isinstance(data, DataLoader) else {"batch_size": batch_size}
    return fit(model, data, val, epochs=epochs, optimizer="sgd", lr=0.1, **size, **arguments)


def check_sum(result, stopwatch):
    """Check that the parts of the bill are what the test's own stopwatch showed, within 5%: the law."""
    bill = result.bill
    assert difference(bill, stopwatch) < 0.05
    assert sum(bill.parts.values()) == pytest.approx(bill.wall_s, rel=1e-6)
    assert min(bill.parts.values()) >= 0
    return bill


def difference(bill, stopwatch):
    """Return by which fraction of the measured time the parts miss it."""
    billed = sum(bill.parts.values()) - stopwatch.billed_before
    return abs(billed - stopwatch.measured) / stopwatch.measured


def test_parts_sum_to_the_wall_time_that_a_stopwatch_shows():
    stopwatch = Stopwatch()
    bill = check_sum(train(SlowScans(), (X, LABELS), callbacks=[Uploads(), stopwatch]), stopwatch)
    # 96 samples at 2 ms and 12 steps at 2 ms are known
    assert bill.parts["data_wait"] >= 0.95 * 96 * NAP_S
    assert bill.callbacks["Uploads"] >= 0.95 * 12 * NAP_S


def forget_a_charge(patch):
    """Lose the time until the end of each callback, as a clock would that takes a reading and gives it to nobody."""
    charge = Clock._charge

    def drop(clock, now):
        if clock._stack[-1][0].startswith("callbacks"):
            clock._since = now
        else:
            charge(clock, now)

    patch.setattr(Clock, "_charge", drop)


def forget_samples(patch):
    """Divide what was timed without giving it to the parts."""
    patch.setattr(Clock, "_settle", lambda self, interval, parts, shares: None)


@pytest.mark.parametrize("forget", [forget_a_charge, forget_samples])
def test_negative_control_a_clock_that_loses_time_fails(monkeypatch, forget):
    forget(monkeypatch)
    stopwatch = Stopwatch()
    bill = train(SlowScans(), (X, LABELS), callbacks=[Uploads(), stopwatch]).bill
    assert difference(bill, stopwatch) > 0.05


def test_parts_sum_with_saves_accumulation_evaluation_and_a_log_point_every_step(tmp_path):
    stopwatch = Stopwatch()
    result = train(
        SlowScans(0.0005), (X, LABELS), accumulate=4, run_dir=tmp_path / "run", log_every="1 steps",
        checkpoint=Checkpointing(every="every 2 steps"), callbacks=[stopwatch],
    )  # fmt: skip
    bill = check_sum(result, stopwatch)
    assert bill.batches == 12
    assert all(
        bill.parts[part] > 0
        for part in ("data_wait", "forward", "backward", "optimizer", "logging", "saving", "evaluation")
    )


def test_parts_sum_with_workers():
    stopwatch = Stopwatch()
    bill = check_sum(train(DataLoader(SlowScans(), batch_size=8, num_workers=2), callbacks=[stopwatch]), stopwatch)
    assert bill.facts["workers"] == 2
    assert bill.parts["data_wait"] > 0


def test_in_a_loop_of_ones_own_the_users_code_is_forward():
    model = nn.Linear(4, 3)
    stopwatch = Stopwatch()
    trainer = Trainer(model, "sgd", lr=0.1, progress=False, device="cpu", callbacks=[stopwatch])
    for epoch in trainer.epochs(2):
        for x, y in epoch.train((X, LABELS), batch_size=40):
            time.sleep(NAP_S)
            trainer.step(nn.functional.cross_entropy(model(x), y))
        for _ in epoch.evaluate((X, LABELS), batch_size=40):
            time.sleep(NAP_S)
        time.sleep(5 * NAP_S)
    bill = check_sum(trainer.result, stopwatch)
    # 12 batches of training, 12 of evaluation, and twice something between the loops
    assert bill.parts["forward"] >= 0.8 * 12 * NAP_S
    assert bill.parts["evaluation"] >= 0.95 * 12 * NAP_S
    assert bill.parts["other"] >= 0.95 * 10 * NAP_S


def test_a_loop_that_is_left_and_an_evaluation_from_a_callback_are_counted_once():
    class Evaluates(Callback):
        def on_step_end(self, trainer):
            if trainer.progress.steps_done == 2:
                time.sleep(100 * NAP_S)  # so that a moment in which a busy machine does something else is no twentieth
                trainer.evaluate((X, LABELS), batch_size=40)

    stopwatch = Stopwatch()
    trainer = Trainer(
        nn.Linear(4, 3), "sgd", lr=0.1, loss="cross_entropy", callbacks=[Evaluates(), stopwatch], progress=False, device="cpu"
    )  # fmt: skip
    for epoch in trainer.epochs(2):
        for batch in epoch.train((X, LABELS), batch_size=40):
            trainer.step(trainer.forward(batch).loss)
            if trainer.progress.steps_in_epoch == 3:
                break
    bill = check_sum(trainer.result, stopwatch)
    assert bill.parts["evaluation"] > 0
    assert bill.callbacks["Evaluates"] >= 0.95 * 100 * NAP_S
    assert bill.batches == 6


def test_several_runs_of_a_trainer_have_a_bill_each():
    trainer = Trainer(nn.Linear(4, 3), "sgd", lr=0.1, loss="cross_entropy", progress=False, device="cpu")
    first = trainer.fit((X, LABELS), batch_size=40, epochs=1).bill
    second = trainer.fit((X, LABELS), batch_size=40, epochs=3).bill
    assert (first.batches, second.batches) == (6, 12)


def test_a_slow_dataset_is_named_and_more_workers_are_proposed():
    (line, *_) = train(SlowScans()).findings
    assert "of the time is waiting for data: SlowScans lets the loop wait" in line
    assert "num_workers" in line or "one core" in line


def test_workers_that_were_measured_are_those_of_the_bill_and_only_more_than_were_tried_are_proposed(monkeypatch):
    monkeypatch.setattr(choosing, "usable_cores", lambda: 2)
    monkeypatch.setattr(choosing, "_MEASURED_S", 0.0)  # eight batches are enough
    monkeypatch.setattr(choosing, "_START_S", 0.0)  # short as they are, they shall pay
    monkeypatch.setattr(choosing, "_WORTH_IT", 1e9)  # and on a busy machine too
    loader = DataLoader(SlowScans(5 * NAP_S), batch_size=1, num_workers="auto")
    result = train(loader, epochs=2)
    assert loader.num_workers_in_use > 0
    assert result.bill.facts["workers"] == loader.num_workers_in_use
    text = " ".join(result.findings)
    workers, cores = result.bill.facts["workers"], result.bill.facts["cores"]
    assert (f"more workers than cores help: try num_workers={2 * workers}." in text) == (workers >= cores)
    assert text.lower().count("try num_workers") == (workers >= cores)
    assert "read in the training process" not in text


def test_a_slow_callback_is_named_by_its_class():
    (line, *_) = train(callbacks=[Uploads()]).findings
    assert "of the time is the callback Uploads" in line


def test_negative_control_nothing_is_named_that_is_not_slow():
    def step_fn(model, batch):
        time.sleep(5 * NAP_S)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    text = " ".join(train(step_fn=step_fn, find_syncs=True).findings)
    assert "data" not in text
    assert "callback" not in text
    assert "reads" not in text


def test_an_item_in_the_users_code_is_named_with_line_source_and_cost():
    def step_fn(model, batch):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        step_fn.shown = loss.item()
        return loss

    result = train(step_fn=step_fn, find_syncs=True)
    (line,) = result.waits
    assert result.findings[-1] == line
    assert "test_bill.py:" in line
    assert "reads a tensor's values: `step_fn.shown = loss.item()` (item, 1 times a batch, " in line
    assert "On a CPU that costs next to nothing; on an accelerator each of these waits" in line


def reads_in(when):
    """Return a step that reads its loss in some batches, counted from 0."""
    numbers = iter(range(10**6))

    def step_fn(model, batch):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if when(next(numbers)):
            step_fn.shown = loss.item()
        return loss

    return step_fn


def test_an_item_in_every_batch_is_named_unasked(tmp_path):
    result = train(step_fn=reads_in(lambda number: True), run_dir=tmp_path / "run", epochs=1)
    assert "test_bill.py:" in result.findings[-1]
    assert "reads a tensor's values: `step_fn.shown = loss.item()` (item, 1 times a batch, " in result.findings[-1]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["findings"][-1] == result.findings[-1]


@pytest.mark.parametrize("when", [lambda number: False, lambda number: number % 10 == 3, lambda number: number < 2])
def test_negative_control_what_is_read_now_and_then_is_not_named_unasked(when):
    assert train(step_fn=reads_in(when), epochs=1).waits == ()


def test_what_a_dataset_reads_on_the_cpu_is_no_wait():
    class Reads(SlowScans):
        def __getitem__(self, index):
            return X[index] * X[index].sum().item(), LABELS[index]

    assert train(Reads(0)).waits == ()


def test_after_the_glance_python_and_the_loop_are_as_before():
    hooks = []

    class Looks(Callback):
        def on_step_end(self, trainer):
            hooks.append(sys.getprofile())

    train(callbacks=[Looks()], epochs=1)
    # of 30 batches those after the second, third and fourth
    assert [hook is not None for hook in hooks] == [False] * 2 + [True] * 3 + [False] * 25
    assert sys.getprofile() is None


def test_a_profiler_of_the_users_is_left_alone():
    def profiler(*_):
        pass

    sys.setprofile(profiler)
    try:
        result = train(step_fn=reads_in(lambda number: True), epochs=1)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert result.waits == ()


def test_the_glance_ends_where_it_would_cost_something():
    hooks = []

    def step_fn(model, batch):
        for _ in range(20_000):
            len(hooks)
        hooks.append(sys.getprofile())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    train(step_fn=step_fn, epochs=1)
    assert set(hooks) == {None}


@pytest.mark.parametrize(
    ("read", "call"),
    [
        (lambda t: float(t.detach().sum()), "__float__"),
        (lambda t: bool(t.sum() > 0), "__bool__"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: t.detach().numpy(), "numpy"),
        (lambda t: t.detach().cpu(), "cpu"),
        (lambda t: t[t > 0], "__getitem__"),
        (lambda t: torch.nonzero(t), "nonzero"),
        (lambda t: f"{t.detach().sum():.2f}", "__format__"),
    ],
)
def test_every_way_to_read_is_found_in_a_callback_too(read, call):
    class Reads(Callback):
        def on_step_end(self, trainer):
            read(trainer.model.weight)

    (line,) = train(callbacks=[Reads()], find_syncs="2:4").findings[-1:]
    assert f"({call}, 1 times a batch" in line


def test_a_loop_that_reads_nothing_is_said_to_wait_nowhere(tmp_path):
    result = train(find_syncs=3, run_dir=tmp_path / "run")
    assert result.waits == ()
    assert "No line waited for the device in 3 batches of training." in (tmp_path / "run" / "log.txt").read_text()


def test_watching_and_timing_change_no_number():
    def weights(**arguments):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        fit(model, (X, LABELS), batch_size=8, epochs=2, optimizer="sgd", lr=0.1, loss="cross_entropy", seed=1, progress=False, device="cpu", **arguments)  # fmt: skip
        return model.weight

    assert torch.equal(weights(), weights(find_syncs=True))


def test_bill_and_findings_are_in_the_records(tmp_path):
    result = train(SlowScans(), run_dir=tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("epoch")) for event in events] == [("bill", 1), ("bill", 2), ("bill", None)]
    assert sum(events[-1]["parts_s"].values()) == pytest.approx(events[-1]["wall_s"])
    # What is recorded ends where it is written; closing the records and drawing curves comes after.
    assert events[-1]["parts_s"] == result.bill.parts | {"other": events[-1]["parts_s"]["other"]}
    assert events[-1]["parts_s"]["other"] < result.bill.parts["other"]
    assert any("SlowScans" in line for line in events[-1]["findings"])


def test_profile_writes_a_trace_of_the_batches_and_says_what_took_the_time(tmp_path):
    train(run_dir=tmp_path / "run", profile="3:4", epochs=1)
    trace = json.loads((tmp_path / "run" / "profile" / "batches-3-4.pt.trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any(name.startswith("aten::addmm") for name in names)
    assert {name for name in names if name.startswith("ProfilerStep")}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Trace of 2 batches: profile/batches-3-4.pt.trace.json" in log
    assert "operation, time on the CPU" in log


def test_profile_of_batches_that_never_come_says_so(tmp_path):
    train(run_dir=tmp_path / "run", profile="1000:1001", epochs=1)
    assert "Nothing was traced: the run had fewer than 1000 batches." in (tmp_path / "run" / "log.txt").read_text()


def test_profile_ends_with_a_run_that_is_shorter_than_asked(tmp_path):
    train(run_dir=tmp_path / "run", profile="29:40", epochs=1)  # 240 / 8 = 30 batches
    assert (tmp_path / "run" / "profile" / "batches-29-30.pt.trace.json").exists()


@pytest.mark.parametrize("value", ["x", 0, "5:3", "0:3", -2, "a:b"])
def test_batches_that_cannot_be_read_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(
        ArgumentError, match='says not which batches. Give a number of batches from the 11th on, or "FIRST:LAST"'
    ):
        train(run_dir=tmp_path / "run", profile=value)
    assert not (tmp_path / "run").exists()


def test_profile_without_a_folder_is_refused():
    with pytest.raises(ArgumentError, match="Give run_dir"):
        train(profile=True)
