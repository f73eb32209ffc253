import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from velodrome.record.progress import LineProgress, NoProgress, TqdmProgress, make_progress
from velodrome.record.progress_text import format_duration, format_epoch, format_rate, format_value

EPOCH_1 = "epoch 1/5  train loss 0.512 accuracy 81.9%  val loss 0.401 accuracy 85.6%  2.5 s  30,000 samples/s"


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def run_epoch(view, clock, epoch=1, *, num_batches=938):
    """Train for 2 s, evaluate for 0.5 s."""
    view.begin("train", epoch, 5, num_batches)
    view.show({"loss": 2.3, "accuracy": 0.1})
    view.advance(500, 32000)
    clock.now_s += 2
    view.advance(938, 60000)
    view.show({"train/loss": 0.5124, "train/accuracy": 0.8194})
    view.end()
    view.begin("val", epoch, 5, 10)
    clock.now_s += 0.5
    view.advance(10, 10000)
    view.show({"val/loss": 0.4011, "val/accuracy": 0.8556})
    view.end()


class Terminal:
    """A pseudo-terminal that records what is drawn on it."""

    def __init__(self, columns, rows):
        self.columns = columns
        self._reader, writer = pty.openpty()
        if columns:
            fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self._seen = bytearray()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while True:
            try:
                data = os.read(self._reader, 65536)
            except OSError:  # how Linux says that the other side is closed
                data = b""
            if not data:
                os.close(self._reader)
                return
            self._seen += data

    def read_all(self):
        self.stream.close()
        self._thread.join(timeout=20)
        return self._seen.decode("utf-8")


@pytest.fixture(params=[(160, 24), (80, 24), (160, 0), (0, 0)], ids=["wide", "narrow", "no height", "no size"])
def terminal(request):
    terminal = Terminal(*request.param)
    yield terminal
    terminal.read_all()


def what_stays(drawn):
    """The lines left on the screen: what the last carriage return of a line did not overwrite."""
    lines = [re.sub(r"\x1b\[A", "", line).rstrip("\r").split("\r")[-1].strip() for line in drawn.split("\n")]
    return [line for line in lines if line]


def test_line_progress_says_one_whole_line_an_epoch():
    stream, clock = io.StringIO(), Clock()
    view = LineProgress(stream, clock=clock)
    run_epoch(view, clock, 1)
    assert stream.getvalue() == EPOCH_1 + "\n"
    run_epoch(view, clock, 2)
    view.close()
    view.close()
    assert stream.getvalue().splitlines() == [EPOCH_1, EPOCH_1.replace("1/5", "2/5")]


def test_line_progress_within_a_phase_says_a_line_every_30_seconds():
    stream, clock = io.StringIO(), Clock()
    view = LineProgress(stream, clock=clock)
    view.begin("train", 2, 5, 1000)
    for tenth in range(1, 1001):  # 100 s, ten calls a second
        clock.now_s = 1000 + tenth / 10
        view.show({"loss": 0.5, "accuracy": 0.75})
        view.advance(tenth, 64 * tenth)
    lines = stream.getvalue().splitlines()
    # after 30 s: 300 of 1000 batches, so 70 s are left; 300 * 64 / 30 = 640
    assert lines[0] == (
        "epoch 2/5 train  300/1,000 batches 30%  loss 0.500 accuracy 75.0%  640 samples/s  1 min 10 s left"
    )
    assert len(lines) == 3
    assert "\r" not in stream.getvalue()


def test_line_progress_of_unknown_length_counts_without_time_left():
    stream, clock = io.StringIO(), Clock()
    view = LineProgress(stream, clock=clock)
    view.begin("train", 3, None, None)
    clock.now_s += 31
    view.advance(1234, 3100)
    assert stream.getvalue() == "epoch 3 train  1,234 batches  100 samples/s\n"


def test_bar_with_more_batches_than_announced_goes_on_counting():
    stream = io.StringIO()
    view = TqdmProgress(stream)
    view.begin("train", 1, 1, 10)
    view.advance(20, 0)
    assert "epoch 1/1 train 20/" in stream.getvalue()
    view.close()


def test_line_progress_with_more_batches_than_announced_goes_on_without_nonsense():
    stream, clock = io.StringIO(), Clock()
    view = LineProgress(stream, clock=clock)
    view.begin("train", 1, 1, 10)
    clock.now_s += 31
    view.advance(20, 0)
    assert stream.getvalue() == "epoch 1/1 train  20/10 batches 100%\n"


@pytest.mark.parametrize("view_class", [LineProgress, TqdmProgress])
def test_training_without_evaluation_says_its_line_when_the_next_epoch_begins_or_at_the_close(view_class):
    stream, clock = io.StringIO(), Clock()
    view = view_class(stream, clock=clock)
    for epoch in (1, 2):
        view.begin("train", epoch, 2, 10)
        clock.now_s += 4
        view.advance(10, 100)
        view.end()
        view.show({"train/loss": 0.25})  # late, but the line was not said yet
    view.close()
    assert what_stays(stream.getvalue()) == [
        "epoch 1/2  train loss 0.250  4.0 s  25 samples/s",
        "epoch 2/2  train loss 0.250  4.0 s  25 samples/s",
    ]


def test_evaluation_by_itself_has_a_line_of_its_own():
    stream, clock = io.StringIO(), Clock()
    view = LineProgress(stream, clock=clock)
    view.begin("evaluate", 0, None, 10)
    clock.now_s += 2
    view.advance(10, 1000)
    view.show({"loss": 0.4, "accuracy": 0.856})
    view.end()
    assert stream.getvalue() == "evaluate loss 0.400 accuracy 85.6%  2.0 s  500 samples/s\n"


def test_calls_in_any_order_do_not_fail():
    for view in (LineProgress(io.StringIO()), TqdmProgress(io.StringIO()), NoProgress()):
        view.advance(1, 1)
        view.show({"loss": 1.0})
        view.end()
        view.begin("train", 1, 1, 5)
        view.begin("val", 1, 1, 5)
        view.close()
        view.advance(1, 1)
        view.say("x")
        view.close()


def test_no_progress_is_silent(capfd):
    view = make_progress(False)
    assert isinstance(view, NoProgress)
    run_epoch(view, Clock())
    view.say("anything")
    view.close()
    assert capfd.readouterr() == ("", "")


def test_make_progress_picks_by_the_stream(terminal, monkeypatch):
    assert isinstance(make_progress(True, io.StringIO()), LineProgress)
    assert isinstance(make_progress(True, terminal.stream), TqdmProgress)
    assert isinstance(make_progress(False, terminal.stream), NoProgress)
    monkeypatch.setattr(sys, "stderr", None)  # a process without a console
    assert isinstance(make_progress(True), NoProgress)


def test_bar_on_a_terminal_shows_everything_and_leaves_one_line_an_epoch(terminal):
    clock = Clock()
    view = TqdmProgress(terminal.stream, clock=clock)
    for epoch in (1, 2):
        run_epoch(view, clock, epoch)
    view.close()
    drawn = terminal.read_all()
    assert what_stays(drawn) == [EPOCH_1, EPOCH_1.replace("1/5", "2/5")]
    bar = next(part for part in drawn.split("\r") if " 938/938 " in part)
    rate = "30,000 samples/s" if terminal.columns == 160 else "30,000/s"
    pattern = rf"epoch 1/5 train 938/938 \|█+\| \d\d:\d\d left, loss 2\.300 accuracy 10\.0%, {rate}"
    assert re.fullmatch(pattern, bar.rstrip())
    assert len(bar.rstrip()) <= (terminal.columns or 80)


def test_line_said_in_the_middle_of_a_bar_stays_whole_and_the_bar_goes_on(terminal):
    clock = Clock()
    view = TqdmProgress(terminal.stream, clock=clock)
    view.begin("train", 1, 1, None)
    view.advance(3, 30)
    view.say("checkpoint saved")
    view.advance(4, 40)
    view.close()
    drawn = terminal.read_all()
    assert what_stays(drawn)[0] == "checkpoint saved"
    assert "epoch 1/1 train 4 batches, 00:00" in drawn.split("checkpoint saved")[1]


def test_bar_starts_no_helper_thread_and_no_process():
    before = set(threading.enumerate())
    view = TqdmProgress(io.StringIO())
    view.begin("train", 1, 1, 5)
    view.advance(1, 1)
    assert set(threading.enumerate()) == before
    view.close()


@pytest.mark.parametrize("view_class", [LineProgress, TqdmProgress])
def test_ascii_stream_gets_plain_letters_without_failing(view_class):
    raw = io.BytesIO()
    stream, clock = io.TextIOWrapper(raw, encoding="ascii", write_through=True), Clock()
    view = view_class(stream, clock=clock)
    view.say("größe 🚲")
    view.begin("train", 1, 1, 3)
    view.show({"größe": 1.0})
    view.advance(3, 30)
    view.end()
    view.close()
    drawn = raw.getvalue().decode("ascii")
    assert drawn.startswith("gr??e ?\n")
    assert "gr??e 1.000" in drawn


class BrokenStream(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error
        self.num_writes = 0

    def write(self, text):
        self.num_writes += 1
        raise self.error


@pytest.mark.parametrize("view_class", [LineProgress, TqdmProgress])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed file")])
def test_stream_that_breaks_makes_the_view_silent(view_class, error):
    stream, clock = BrokenStream(error), Clock()
    view = view_class(stream, clock=clock)
    for epoch in range(1, 4):
        run_epoch(view, clock, epoch)
    view.say("x")
    view.close()
    assert stream.num_writes == 1  # it failed once and was left alone


@pytest.mark.parametrize("view_class", [LineProgress, TqdmProgress])
def test_stream_that_is_closed_makes_the_view_silent(view_class):
    stream, clock = io.StringIO(), Clock()
    view = view_class(stream, clock=clock)
    view.begin("train", 1, 5, 10)
    stream.close()
    run_epoch(view, clock, 1)
    view.close()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.8194, "81.9%"),
        ("top5", 1.0, "100.0%"),
        ("train/topk", 0.5, "50.0%"),
        ("accuracy", 81.9, "81.900"),  # already percent, or no share at all
        ("loss", 0.0, "0.000"),
        ("loss", 12345.678, "1.23e+04"),
        ("loss", -0.5, "-0.500"),
        ("loss", float("nan"), "nan"),
        ("loss", float("inf"), "inf"),
        ("loss", None, "nan"),
    ],
)
def test_values_read_as_people_write_them(name, value, text):
    assert format_value(name, value) == text


def test_durations_rates_and_epochs_at_their_borders():
    assert [format_duration(s) for s in (0, 59.94, 59.96, 3599.6, 360000)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "100 h 00 min"
    ]  # fmt: skip
    assert [format_rate(*pair) for pair in ((0, 1), (5, 0), (5, 10), (1000, 1))] == [
        "",
        "",
        "0.5 samples/s",
        "1,000 samples/s",
    ]
    assert [format_epoch(*pair) for pair in ((1, 5), (1, None), (0, None))] == ["epoch 1/5", "epoch 1", ""]


@pytest.mark.parametrize("phases", [["train"], ["train", "val"]])
def test_close_within_a_phase_says_no_line_for_the_epoch_that_was_cut_short(phases):
    stream = io.StringIO()
    view = LineProgress(stream, clock=Clock())
    *whole, cut_short = phases
    for phase in whole:
        view.begin(phase, 1, 2, 3)
        view.end()
    view.begin(cut_short, 1, 2, 3)
    view.advance(1, 10)
    view.close()
    view.close()
    assert stream.getvalue() == ""
