"""The clock of a run, with a time of our own: every second is counted once."""

import pytest

from velodrome.errors import ArgumentError
from velodrome.record import clock as clock_module
from velodrome.record.bill import NO_BILL, Bill
from velodrome.record.clock import Clock
from velodrome.report.bill_parts import PARTS


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Marks:
    """Marks on that time."""

    def __init__(self, time, over=True, are_of_host=True):
        self.now = time
        self.over = over
        self.are_of_host = are_of_host

    def are_over(self, mark):
        return self.over

    def seconds(self, begin, end):
        return end - begin

    def wait(self, mark):
        self.over = True

    def drain(self):
        pass


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock_module, "perf_counter", time)
    return time


class Step:
    """Methods that take their time."""

    def __init__(self, time):
        self.time = time

    def backward(self):
        self.time.sleep(0.3)

    def update(self):
        self.time.sleep(0.2)


def spent(bill):
    return {part: round(seconds, 6) for part, seconds in bill.parts.items() if seconds > 1e-9}


def run_batches(clock, time, step, num, *, fetch=0.4, place=0.1, forward=0.5):
    def source():
        for number in range(num):
            time.sleep(fetch)
            yield number

    def put(batch):
        time.sleep(place)
        return batch, 1

    points = [(step, "backward", "backward"), (step, "update", "optimizer")]
    with clock.looping():
        for _ in clock.batches(source(), put, points):
            time.sleep(forward)
            step.backward()
            step.update()


def test_every_batch_is_timed_where_batches_are_long(time):
    clock, step = Clock(Marks(time)), Step(time)
    clock.begin()
    run_batches(clock, time, step, 20)
    time.sleep(7)
    bill = clock.end()
    # 20 batches of 0.4 + 0.1 + 0.5 + 0.3 + 0.2 seconds, and 7 seconds of something else
    assert spent(bill) == {"data_wait": 8, "transfer": 2, "forward": 10, "backward": 6, "optimizer": 4, "other": 7}
    assert bill.wall_s == pytest.approx(37)
    assert bill.batches == 20
    assert vars(step).keys() == {"time"}


def test_short_batches_are_timed_now_and_then_and_the_parts_are_the_whole(time):
    clock, step = Clock(Marks(time)), Step(time)
    readings = []
    now = clock._marks.now
    clock._marks.now = lambda: readings.append(1) or now()
    step.backward = lambda: time.sleep(3e-5)
    step.update = lambda: time.sleep(2e-5)
    clock.begin()
    run_batches(clock, time, step, 10_000, fetch=4e-5, place=1e-5, forward=5e-5)
    bill = clock.end()
    # 10,000 batches of 40 + 10 + 50 + 30 + 20 microseconds
    assert {part: round(seconds, 3) for part, seconds in spent(bill).items()} == {
        "data_wait": 0.4, "transfer": 0.1, "forward": 0.5, "backward": 0.3, "optimizer": 0.2
    }  # fmt: skip
    assert sum(bill.parts.values()) == pytest.approx(bill.wall_s)
    # Nine marks a timed batch, and about 10,000 / 64 of these: 1,406.
    assert len(readings) < 2000


def test_what_happens_in_every_second_batch_is_not_missed_or_counted_twice(time):
    clock, step = Clock(Marks(time)), Step(time)
    step.backward = lambda: time.sleep(5e-5)
    turns = iter(range(10**6))
    step.update = lambda: time.sleep(1e-4 if next(turns) % 2 else 0.0)
    clock.begin()
    run_batches(clock, time, step, 40_000, fetch=0, place=0, forward=0)
    bill = clock.end()
    assert bill.parts["optimizer"] == pytest.approx(2.0, rel=0.1)  # 20,000 times 100 microseconds
    assert bill.parts["backward"] == pytest.approx(2.0, rel=0.1)


def every(number, seconds, otherwise):
    """Return a function that takes its time, much more of it every so often."""
    turns = iter(range(1, 10**9))
    return lambda: seconds if next(turns) % number == 0 else otherwise


@pytest.mark.parametrize("where", ["fetch", "forward"])
def test_a_few_batches_that_take_far_longer_are_not_spread_over_the_others(time, where):
    clock, step = Clock(Marks(time)), Step(time)
    step.backward = lambda: time.sleep(3e-5)
    step.update = lambda: time.sleep(2e-5)
    rare = every(50, 0.05, 4e-5)
    clock.begin()

    def source():
        for number in range(2000):
            time.sleep(rare() if where == "fetch" else 4e-5)
            yield number

    with clock.looping():
        for _ in clock.batches(
            source(), lambda batch: (batch, 1), [(step, "backward", "backward"), (step, "update", "optimizer")]
        ):
            time.sleep(rare() if where == "forward" else 4e-5)
            step.backward()
            step.update()
    bill = clock.end()
    # 2,000 batches of 40 + 40 + 30 + 20 microseconds, and in 40 of them 50 milliseconds more
    assert bill.num_long == (0 if where == "fetch" else 40)
    assert bill.long_s == pytest.approx(0 if where == "fetch" else 2.0, rel=0.01)
    slow, other = ("data_wait", "forward") if where == "fetch" else ("forward", "data_wait")
    assert bill.parts[slow] == pytest.approx(2.08, rel=0.01)
    assert bill.parts[other] == pytest.approx(0.08, rel=0.1)
    assert bill.parts["backward"] == pytest.approx(0.06, rel=0.1)
    assert bill.parts["optimizer"] == pytest.approx(0.04, rel=0.1)
    assert sum(bill.parts.values()) == pytest.approx(bill.wall_s)


def test_a_row_that_takes_long_is_no_long_batch(time):
    clock, step = Clock(Marks(time)), Step(time)
    step.backward = lambda: time.sleep(3e-5)
    rare = every(50, 0.05, 0.0)

    def update():
        time.sleep(2e-5)
        with clock.spending("logging"):
            time.sleep(rare())

    step.update = update
    clock.begin()
    run_batches(clock, time, step, 2000, fetch=4e-5, place=1e-5, forward=5e-5)
    bill = clock.end()
    assert bill.parts["logging"] == pytest.approx(2.0)
    assert bill.parts["forward"] == pytest.approx(0.1, rel=0.05)


def test_a_save_that_a_callback_asks_for_is_saving(time):
    clock = Clock(Marks(time))

    class Asks:
        def on_epoch_end(self, trainer):
            time.sleep(1)
            with clock.spending("saving"):
                time.sleep(2)
            time.sleep(4)

    clock.begin()
    (told,) = clock.timed_listeners({"on_epoch_end": [Asks().on_epoch_end]})["on_epoch_end"]
    told(None)
    bill = clock.end()
    assert spent(bill) == {"callbacks": 5, "saving": 2}
    assert bill.callbacks == {"Asks": pytest.approx(5)}


def test_a_callback_within_a_batch_is_not_part_of_the_batch(time):
    clock, step = Clock(Marks(time)), Step(time)

    class Slow:
        def on_step_end(self):
            time.sleep(10)
            step.backward()  # a callback may use what is timed

    (told,) = clock.timed_listeners({"on_step_end": [Slow().on_step_end]})["on_step_end"]
    plain = step.update
    step.update = lambda: (plain(), told())
    clock.begin()
    run_batches(clock, time, step, 3)
    assert spent(clock.end()) == {
        "data_wait": 1.2, "transfer": 0.3, "forward": 1.5, "backward": 0.9, "optimizer": 0.6, "callbacks": 30.9
    }  # fmt: skip


def test_a_device_that_is_behind_is_waited_for_at_the_end_only(time):
    marks = Marks(time, over=False)
    clock, step = Clock(marks), Step(time)
    clock.begin()
    run_batches(clock, time, step, 20)
    assert not marks.over
    assert sum(clock.bill.parts.values()) == pytest.approx(30)
    bill = clock.end()
    assert marks.over
    assert spent(bill) == {"data_wait": 8, "transfer": 2, "forward": 10, "backward": 6, "optimizer": 4}


def test_a_loop_that_is_left_leaves_nothing_behind(time):
    clock, step = Clock(Marks(time)), Step(time)
    clock.begin()
    with clock.looping():
        loop = clock.batches([1, 2, 3], lambda raw: (raw, 1), [(step, "backward", "backward")])
        next(loop)
        assert "backward" in vars(step)
        time.sleep(1)
        loop.close()
    assert "backward" not in vars(step)
    assert spent(clock.end()) == {"forward": 1}


def test_what_lasts_longer_than_what_is_around_it_does_no_harm(time):
    clock = Clock(Marks(time))
    clock.begin()
    outer = clock.push("evaluation")
    inner = clock.push("saving")
    time.sleep(1)
    clock.pop(outer)
    time.sleep(2)
    clock.pop(inner)
    assert spent(clock.end()) == {"saving": 1, "other": 2}


def test_before_a_run_nothing_is_counted(time):
    clock = Clock(Marks(time))
    with clock.spending("evaluation"):
        time.sleep(1)
    assert clock.bill.wall_s == NO_BILL.wall_s == 0


def test_line_puts_the_largest_part_first_and_small_ones_together():
    bill = Bill(wall_s=10.0, parts=dict.fromkeys(PARTS, 0.0) | {"data_wait": 6.2, "backward": 3.75, "saving": 0.05})
    assert bill.line() == "Time 10 s: waiting for data 62%, backward 38%, the rest 0.5%"
    assert Bill(wall_s=7322.0).line().startswith("Time 2 h 02 min")


def test_table_has_a_row_a_part_a_callback_and_the_sum():
    bill = Bill(wall_s=2.0, parts={"forward": 1.5, "callbacks": 0.5}, callbacks={"Nap": 0.5}, batches=1000)
    rows = {line[:22].strip(): line[22:].split() for line in bill.table().splitlines()}
    assert rows["forward and loss"] == ["1.500", "75.0", "1,500.0"]  # 1.5 s / 1000 batches
    assert rows["Nap"] == ["0.500", "25.0"]
    assert rows["wall time"] == ["2.000", "100.0"]


def test_a_part_that_there_is_not_is_refused_by_name():
    bill = Bill(wall_s=2.0, parts={"forward": 1.5})
    assert (bill.fraction("forward"), bill.fraction("saving")) == (0.75, 0)
    with pytest.raises(ArgumentError, match=r"part='foward' is no part.*Did you mean \"forward\""):
        bill.fraction("foward")
