import csv
import os

import pytest

from velodrome.record.csv_sink import CsvSink


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_write_epochs_with_columns_that_appear_late_keeps_every_line_whole(tmp_path):
    path = tmp_path / "metrics.csv"
    sink = CsvSink(path)
    sink.write({"kind": "epoch", "epoch": 1, "train/loss": 0.5})
    sink.write({"kind": "epoch", "epoch": 2, "train/loss": 0.4, "val/loss": 0.45})
    sink.write({"kind": "epoch", "epoch": 3, "train/loss": None})
    sink.close()
    assert path.read_bytes() == b"epoch,train/loss,val/loss\n1,0.5,\n2,0.4,0.45\n3,,\n"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_write_step_rows_are_not_in_the_table(tmp_path):
    sink = CsvSink(tmp_path / "metrics.csv")
    sink.write({"kind": "step", "step": 50})
    sink.close()
    assert not (tmp_path / "metrics.csv").exists()


def test_write_names_with_commas_quotes_and_letters_come_back(tmp_path):
    row = {"epoch": 1, 'val/a,"b"': 0.1, "val/größe\n2": 1e-300, "note": "x;y"}
    CsvSink(tmp_path / "metrics.csv").write({"kind": "epoch", **row})
    assert read(tmp_path / "metrics.csv") == [{name: str(value) for name, value in row.items()}]


def test_written_numbers_come_back_bit_for_bit(tmp_path):
    numbers = [0.1 + 0.2, 1e-17, 5e-324, 1 / 3]
    sink = CsvSink(tmp_path / "metrics.csv")
    for epoch, number in enumerate(numbers, start=1):
        sink.write({"kind": "epoch", "epoch": epoch, "train/loss": number})
    assert [float(row["train/loss"]) for row in read(tmp_path / "metrics.csv")] == numbers


def test_write_first_row_replaces_an_older_table(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("old\n1\n")
    CsvSink(path).write({"kind": "epoch", "epoch": 1})
    assert path.read_text() == "epoch\n1\n"


def test_write_after_a_failed_line_puts_the_whole_table_back(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    sink = CsvSink(folder / "metrics.csv")
    sink.write({"kind": "epoch", "epoch": 1})
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        sink.write({"kind": "epoch", "epoch": 2})
    folder.mkdir()
    sink.close()
    assert read(folder / "metrics.csv") == [{"epoch": "1"}, {"epoch": "2"}]


def test_go_on_keeps_the_rows_of_the_run_and_drops_those_that_come_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvSink(path)
    rows = [{"kind": "epoch", "epoch": epoch, "train/loss": 1 / epoch} for epoch in (1, 2)]
    for row in rows:
        first.write(row)
    sink = CsvSink(path)
    sink.go_on([rows[0], {"kind": "step", "step": 7}], 7)
    sink.write({"kind": "epoch", "epoch": 2, "train/loss": 0.25})
    sink.write({"kind": "epoch", "epoch": 3, "train/loss": 0.125})

    assert [(row["epoch"], row["train/loss"]) for row in read(path)] == [("1", "1.0"), ("2", "0.25"), ("3", "0.125")]


def test_go_on_brings_the_table_up_to_date_also_when_no_epoch_follows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch\n1\n2\n")
    sink = CsvSink(path)
    sink.go_on([{"kind": "epoch", "epoch": 1}], 4)
    sink.close()

    assert [row["epoch"] for row in read(path)] == ["1"]
