import os
import subprocess
import sys
import textwrap
import time

import pytest

import velodrome
from support.programs import environment
from velodrome.errors import ArgumentError
from velodrome.record.journal import Journal
from velodrome.record.sinks import default_sinks, make_sink, make_sinks
from velodrome.record.tensorboard_sink import TensorBoardSink

pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")

SOURCES = os.path.dirname(os.path.dirname(velodrome.__file__))


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def run_python(code, *folders):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment(*folders),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_rows_written_are_read_back_by_tensorboard_under_the_promised_tags(tmp_path):
    journal = Journal(None, make_sinks(tmp_path, ["tensorboard"]))
    journal.write({"kind": "step", "epoch": 1, "step": 50, "samples": 3200, "seconds": 0.1, "lr": 0.001,
                   "train/loss": 1.5, "samples_per_s": 31000.0})  # fmt: skip
    journal.write({"kind": "epoch", "epoch": 1, "step": 938, "samples": 60000, "seconds": 2.1, "lr": 0.001,
                   "train/loss": 0.5, "train/accuracy": 0.75, "train/top5": 0.875, "val/loss": 0.25,
                   "val/accuracy": 0.625, "val/my_metric": 3, "val/nan": float("nan")})  # fmt: skip
    journal.write({"kind": "epoch", "epoch": 2, "step": 1876, "train/loss": 0.125})
    journal.close()
    assert read_scalars(tmp_path / "tb") == {
        "Step/loss": [(50, 1.5)],
        "Step/lr": [(50, 0.001)],
        "Step/samples_per_s": [(50, 31000.0)],
        "Loss/train": [(938, 0.5), (1876, 0.125)],
        "Accuracy/train": [(938, 0.75)],
        "Top5/train": [(938, 0.875)],
        "Loss/val": [(938, 0.25)],
        "Accuracy/val": [(938, 0.625)],
        "My_metric/val": [(938, 3.0)],
    }


def test_epoch_is_readable_while_the_run_goes_on(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"kind": "epoch", "step": 3, "train/loss": 0.5})
    assert read_scalars(tmp_path) == {"Loss/train": [(3, 0.5)]}
    sink.close()


def test_step_rows_of_a_run_without_an_epoch_are_written_at_close(tmp_path):
    sink = TensorBoardSink(tmp_path / "tb")
    sink.write({"kind": "step", "step": 50, "train/loss": 0.5})
    assert not (tmp_path / "tb").exists()  # held, because the first write imports tensorboard
    sink.close()
    assert read_scalars(tmp_path / "tb") == {"Step/loss": [(50, 0.5)]}


def test_run_without_rows_leaves_no_folder(tmp_path):
    TensorBoardSink(tmp_path / "tb").close()
    assert not (tmp_path / "tb").exists()


def test_missing_tensorboard_is_a_line_by_default_and_an_error_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what Python itself does for "not importable"
    said = []
    sinks = default_sinks(tmp_path, said.append)
    assert [type(sink).__name__ for sink in sinks] == ["CsvSink"]
    assert said == [
        'No TensorBoard files: tensorboard is not installed. To have them: pip install "velodrome[tensorboard]"'
    ]
    with pytest.raises(ArgumentError, match=r'not installed.*pip install "velodrome\[tensorboard\]"'):
        make_sink("tensorboard", tmp_path)


def test_default_sinks_with_everything_installed_says_nothing(tmp_path):
    said = []
    assert [type(sink).__name__ for sink in default_sinks(tmp_path, said.append)] == [
        "CsvSink",
        "TensorBoardSink",
    ]
    assert said == []
    assert os.listdir(tmp_path) == []


def test_unknown_sink_name_gives_the_nearest(tmp_path):
    with pytest.raises(ArgumentError, match=r'"tensorbord" is not a logger.*Did you mean "tensorboard"'):
        make_sink("tensorbord", tmp_path)


def test_making_sinks_imports_neither_torch_nor_tensorboard(tmp_path):
    code = """
        import sys, pathlib
        from velodrome.record.sinks import default_sinks
        default_sinks(pathlib.Path("unused"), print)
        print(sorted({"torch", "tensorboard", "tqdm", "numpy"} & set(sys.modules)))
    """
    assert run_python(code).stdout == "[]\n"


def test_an_installed_tensorflow_is_neither_imported_nor_heard(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported, with pages of log lines')")
    code = f"""
        import pathlib
        from velodrome.record.tensorboard_sink import TensorBoardSink
        sink = TensorBoardSink(pathlib.Path({str(tmp_path / "tb")!r}))
        sink.write({{"kind": "epoch", "step": 1, "train/loss": 0.5}})
        sink.close()
    """
    done = run_python(code, tmp_path)
    assert done.stdout == done.stderr == ""
    assert len(os.listdir(tmp_path / "tb")) == 1


def test_curves_of_a_resumed_run_never_fold_back(tmp_path):
    rows = [{"kind": "epoch", "step": step, "train/loss": 1.0 / step} for step in (5, 10, 15, 20)]
    first = TensorBoardSink(tmp_path)
    for row in rows:
        first.write(row)
    first.close()
    sink = TensorBoardSink(tmp_path)
    sink.go_on(rows[:2], 10)  # what came after step 10 is made again, and differently here
    sink.write({"kind": "epoch", "step": 15, "train/loss": 0.5})
    sink.close()

    assert read_scalars(tmp_path)["Loss/train"] == [(5, 0.2), (10, 0.1), (15, 0.5)]


@pytest.mark.parametrize(("before", "after"), [(9, 10), (10, 11)], ids=["10 sorts before 9", "11 sorts after 10"])
def test_a_run_that_goes_on_within_the_same_second_is_read_after_what_it_goes_on_from(
    tmp_path, monkeypatch, before, after
):
    # TensorBoard reads the files of a folder in the order of their names: second, host, process, number of the writer.
    from tensorboard.summary.writer import event_file_writer

    time.sleep(1 - time.time() % 1)  # a whole second is ahead, so that both begin in it
    for number, rows in ((before, [(5, 0.5), (10, 0.25)]), (after, [(10, 0.75)])):
        monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(number))
        sink = TensorBoardSink(tmp_path)
        if number == after:
            sink.go_on([{"kind": "epoch", "step": 5, "train/loss": 0.5}], 5)
        for step, loss in rows:
            sink.write({"kind": "epoch", "step": step, "train/loss": loss})
        sink.close()

    assert read_scalars(tmp_path)["Loss/train"] == [(5, 0.5), (10, 0.75)]
    assert len(os.listdir(tmp_path)) == 2  # no empty file is left behind


def test_a_clock_that_went_back_is_not_waited_for(tmp_path):
    (tmp_path / "events.out.tfevents.9999999999.host.1.0").touch()  # made in the year 2286
    sink = TensorBoardSink(tmp_path)
    sink.write({"kind": "epoch", "step": 5, "train/loss": 0.5})
    sink.close()
    assert read_scalars(tmp_path) == {"Loss/train": [(5, 0.5)]}


def test_rows_that_a_killed_process_had_not_flushed_are_written_by_the_one_that_goes_on(tmp_path):
    rows = [{"kind": "epoch", "step": 5, "train/loss": 0.5}, *({"kind": "step", "step": step, "train/loss": 1.0 / step} for step in (7, 9))]  # fmt: skip
    killed = TensorBoardSink(tmp_path)
    for row in rows:
        killed.write(row)  # the steps are in its memory only: it flushes at the end of an epoch
    sink = TensorBoardSink(tmp_path)
    sink.go_on(rows, 9)
    sink.write({"kind": "epoch", "step": 10, "train/loss": 0.25})
    sink.close()

    curves = read_scalars(tmp_path)
    killed.close()
    assert curves == {"Loss/train": [(5, 0.5), (10, 0.25)], "Step/loss": [(7, 0.142857), (9, 0.111111)]}
