import pytest

from velodrome.errors import ArgumentError
from velodrome.report.records import read_records

TEXT = '{"kind": "step", "step": 1}\n{"kind": "epoch", "epoch": 1, "val/loss": null}\n'


def test_read_records_of_a_file_or_its_run_directory(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TEXT)
    rows = [{"kind": "step", "step": 1}, {"kind": "epoch", "epoch": 1, "val/loss": None}]
    assert read_records(tmp_path / "metrics.jsonl") == read_records(str(tmp_path)) == rows
    assert read_records(tmp_path, kind="epoch") == rows[1:]


@pytest.mark.parametrize("torn", ["", '{"kind": "ep', "{", '{"name": "gr\\u00', "\x00\x00", "1"])
def test_read_records_leaves_out_a_torn_last_line(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text(TEXT + torn)
    assert len(read_records(tmp_path)) == 2


def test_read_records_leaves_out_a_last_line_torn_inside_a_letter(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(TEXT.encode() + '{"name": "ö'.encode()[:-1])
    assert len(read_records(tmp_path)) == 2


@pytest.mark.parametrize("bad", ["nonsense", "[1, 2]", '{"a": 1', "[" * 100_000])
def test_read_records_with_a_bad_line_in_the_middle_names_it(tmp_path, bad):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(ArgumentError, match=r"Line 3 of .*metrics\.jsonl is not a record.*Remove that line"):
        read_records(tmp_path)


def test_read_records_without_a_file_says_which(tmp_path):
    with pytest.raises(ArgumentError, match=r"metrics\.jsonl cannot be read: No such file"):
        read_records(tmp_path)
