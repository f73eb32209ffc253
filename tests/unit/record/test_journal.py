import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from velodrome.errors import CheckpointError
from velodrome.record.journal import MAX_NAMES, Journal, read_rows
from velodrome.record.sink import make_plain


def read_whole_lines(path):
    """Return the rows of a journal; a last line that is torn is none yet."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class Collecting:
    def __init__(self):
        self.rows = []
        self.is_closed = False

    def write(self, row):
        self.rows.append(row)

    def close(self):
        self.is_closed = True


class Failing(Collecting):
    def write(self, row):
        raise ConnectionError("the server is down")


def test_write_rows_gives_one_strict_json_line_each_and_the_same_rows_in_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, [])
    journal.write({"kind": "step", "step": 50, "train/loss": 0.5})
    assert len(path.read_text().splitlines()) == 1  # there at once, before close
    journal.write({"kind": "epoch", "epoch": 1, "train/loss": float("nan"), "val/loss": float("-inf")})
    journal.close()
    lines = path.read_text().splitlines()
    assert lines[1] == '{"kind": "epoch", "epoch": 1, "train/loss": null, "val/loss": null}'
    assert journal.rows == [json.loads(line) for line in lines] == read_whole_lines(path)


def test_write_numpy_and_torch_scalars_gives_numbers(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(
        {
            "a": np.float32(0.5),
            "b": np.int64(3),
            "c": torch.tensor(0.25, requires_grad=True),
            "d": torch.tensor([2]),
            "e": torch.tensor(math.nan),
            "f": np.float64("inf"),
            "g": np.bool_(True),
        }
    )
    journal.close()
    assert journal.rows == [{"a": 0.5, "b": 3, "c": 0.25, "d": 2, "e": None, "f": None, "g": True}]


def test_write_what_is_no_number_gives_text_not_a_failure(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"name": "größe 🚲", "path": tmp_path / "x", "object": object(), "tensor": torch.zeros(1000), 7: 1})
    journal.close()
    (row,) = read_whole_lines(tmp_path / "metrics.jsonl")
    assert row["name"] == "größe 🚲"
    assert row["path"] == (tmp_path / "x").as_posix()
    assert str(row["object"]).startswith("<object object")
    assert str(row["tensor"]).startswith("tensor([0., 0.")
    assert len(str(row["tensor"])) <= 200
    assert row["7"] == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=12,
    )
)
def test_make_plain_anything_gives_strict_json(value):
    plain = make_plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False).encode("utf-8")) == plain


def test_make_plain_lone_surrogate_can_be_written_as_utf8():
    assert make_plain(os.fsdecode(b"\xff")).encode("utf-8") == b"\\udcff"


def test_write_without_a_path_keeps_rows_and_feeds_sinks():
    sink = Collecting()
    journal = Journal(None, [sink])
    journal.write({"kind": "epoch", "train/loss": float("nan")})
    journal.close()
    assert journal.rows == sink.rows == [{"kind": "epoch", "train/loss": None}]
    assert sink.is_closed


def test_write_to_a_sink_that_raises_switches_it_off_with_one_line(tmp_path):
    said = []
    bad, good = Failing(), Collecting()
    journal = Journal(tmp_path / "metrics.jsonl", [bad, good], say=said.append)
    for step in range(3):
        journal.write({"step": step})
    journal.close()
    assert len(said) == 1
    assert "Failing raised ConnectionError: the server is down. It is off" in said[0]
    assert bad.is_closed
    assert len(good.rows) == len(read_whole_lines(tmp_path / "metrics.jsonl")) == 3


def test_write_row_changed_by_a_sink_leaves_the_record_alone():
    class Changing(Collecting):
        def write(self, row):
            row.clear()

    journal = Journal(None, [Changing()])
    journal.write({"step": 1})
    assert journal.rows == [{"step": 1}]


def test_close_with_a_sink_that_raises_says_so_and_closes_the_others():
    class RaisesAtClose(Collecting):
        def close(self):
            raise OSError("no space")

    said, good = [], Collecting()
    journal = Journal(None, [RaisesAtClose(), good], say=said.append)
    journal.close()
    journal.close()
    assert good.is_closed
    assert len(said) == 1
    assert "RaisesAtClose raised OSError: no space" in said[0]


def test_say_that_raises_does_not_stop_training(capsys):
    def say(line):
        raise BrokenPipeError

    journal = Journal(None, [Failing()], say=say)
    journal.write({"step": 1})
    assert "Failing raised ConnectionError" in capsys.readouterr().err


def test_write_more_than_the_cap_of_names_drops_the_rest_with_one_warning():
    said = []
    journal = Journal(None, say=said.append)
    names = {f"train/layer{i}": float(i) for i in range(MAX_NAMES + 5)}
    journal.write({"kind": "step", "step": 1, **names})
    journal.write({"kind": "step", "step": 2, "another": 1.0, "train/layer0": 7.0})
    assert len(journal.rows[0]) == MAX_NAMES  # kind, step and 998 layers
    assert journal.rows[1] == {"kind": "step", "step": 2, "train/layer0": 7.0}
    assert len(said) == 1
    assert "more than 1000 different names; 7 new ones of this row are not recorded" in said[0]  # 2 + 1005 - 1000


@pytest.mark.parametrize("torn", [b"", b'{"step": 2, "tr', b"\x00" * 50])
def test_write_to_a_file_with_a_torn_last_line_goes_on_after_the_last_whole_one(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    journal = Journal(path)
    journal.write({"step": 2})
    journal.close()
    assert read_whole_lines(path) == [{"step": 1}, {"step": 2}]


class GoingOn(Collecting):
    def go_on(self, rows, step):
        self.rows, self.step = list(rows), step


def test_go_back_cuts_the_file_keeps_what_was_cut_aside_and_tells_the_sinks(tmp_path):
    first = Journal(tmp_path / "metrics.jsonl")
    first.write({"kind": "step", "step": 1})
    length = first.sync()
    first.write({"kind": "step", "step": 2})
    first.close()
    sink, deaf = GoingOn(), Collecting()
    journal = Journal(tmp_path / "metrics.jsonl", [sink, deaf])

    assert journal.go_back(length, step=1) == [{"kind": "step", "step": 1}]
    journal.write({"kind": "step", "step": 3})
    journal.close()

    assert (tmp_path / "metrics.jsonl").read_text() == '{"kind": "step", "step": 1}\n{"kind": "step", "step": 3}\n'
    assert (tmp_path / "metrics.cut.jsonl").read_text() == '{"kind": "step", "step": 2}\n'
    assert (sink.step, [row["step"] for row in sink.rows]) == (1, [1, 3])
    assert deaf.rows == [{"kind": "step", "step": 3}]
    assert [row["step"] for row in journal.rows] == [1, 3]


def test_go_back_in_a_journal_that_lost_its_end_says_so_and_goes_on(tmp_path):
    said = []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "st')
    journal = Journal(path, say=said.append)

    assert [row["step"] for row in journal.go_back(500, step=2)] == [1]
    journal.close()
    assert "is shorter than it was at the checkpoint of step 2" in said[0]


def test_go_back_refuses_what_is_no_journal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ("no json\n", '{"no": "kind"}\n', "[1]\n"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
            Journal(path).go_back(None, step=1)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
            read_rows(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(CheckpointError, match="cannot be cut back to the checkpoint of step 1"):
        Journal(tmp_path).go_back(0, step=1)  # a folder


def test_sync_of_a_journal_in_memory_is_no_length(tmp_path):
    journal = Journal(None)
    journal.write({"kind": "step", "step": 1})
    assert journal.sync() is None
    assert journal.go_back(0, step=1) == []
