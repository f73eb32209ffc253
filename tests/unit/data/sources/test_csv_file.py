import csv
import os
import re

import pytest

from velodrome.data.sources.csv_file import read_table
from velodrome.errors import ArgumentError, DataError


@pytest.fixture
def table(tmp_path):
    """Returns a function that writes text (or bytes) as a file and gives its path."""

    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a,b\n1,2\n", ["a", "b"]),
        (" a , b \n1,2\n", ["a", "b"]),
        ("a,b\n1,red\n", ["a", "b"]),  # above one number stands a word
        ("a,b\n1,2\nx,3\n4,5\n", ["a", "b"]),  # a bad cell below is not what decides
        (",a\n0,2\n", ["column 0", "a"]),  # an index without a name
        ("größe,名前\n1,2\n", ["größe", "名前"]),
        ("1,2\n3,4\n", None),
        ("1,red\n2,blue\n", None),
        ("1,red\n", None),
        ("?,1\n2,3\n", None),
        ("1e3,-.5\n", None),
    ],
)
def test_header_is_found_out(table, content, names):
    read = read_table(table(content))
    assert read.has_names == (names is not None)
    assert read.names == (names or ["column 0", "column 1"])
    assert len(read.rows) == content.count("\n") - (names is not None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("2019,2020,target\n1,2,0\n3,4,1\n", "mixes numbers with words above numbers"),
        ("1,abc,0\n2,3,1\n4,5,0\n", "mixes numbers with words above numbers"),
        ("color,label\nred,yes\nblue,no\n", "holds no number, and neither do the rows below it"),
    ],
)
def test_header_that_cannot_be_told_must_be_said(table, content, reason):
    path = table(content)
    with pytest.raises(DataError, match=f"the first row .* {reason}.*say which with header=True or header=False"):
        read_table(path)
    assert len(read_table(path, header=True).rows) == content.count("\n") - 1
    assert len(read_table(path, header=False).rows) == content.count("\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_the_byte_order_mark_do_not_matter(table, end, mark):
    read = read_table(table(mark + end.join(['a,"b, c"', "1,2", "", '3,"4"', "   ", ""]).encode()))
    assert read.names == ["a", "b, c"]
    assert read.rows == [["1", "2"], ["3", "4"]]
    assert read.lines == [2, 4]


def test_rows_know_the_line_on_which_they_end(table):
    read = read_table(table('name,x\n"two\nlines",1\nb,2\n'))
    assert read.lines == [3, 4]
    assert read.place(1, "x").endswith("table.csv, line 4, column 'x'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty. It must hold at least one row"),
        ("\n \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("a,b\n", "holds names of 2 columns and 0 rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells, the first row has 2.*correct this one"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells, the first row has 2"),
        (
            "a;b\n1;2\n",
            r"has one column \(a;b\) and seems to be separated by ';'. Save it with commas between cells and points in numbers",
        ),
        ("x;y\n0,5;1,5\n1,5;2\n", r"has one column \(x;y\) and seems to be separated by ';'"),
        ("1\t2\n", "seems to be separated by '.t'"),
        ("a,a\n1,2\n", "has two columns called 'a'. Rename one"),
        (b"a,b\n1,\xff\n", r"is not UTF-8: byte 0xff \(invalid start byte\). Save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8: byte 0xff"),
        (
            'a,b\n1,"2\n3,4\n',
            "line 2 begins a row that is not CSV: unexpected end of data. Look for an unclosed quotation mark",
        ),
        ("a,b\n1," + "2" * 200_000 + "\n", "line 2 begins a row that is not CSV: field larger than field limit"),
    ],
)
def test_file_that_is_no_table_is_refused(table, content, message):
    path = table(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.path == path


def test_field_limit_is_left_as_it_was(table):
    before = csv.field_size_limit()
    read_table(table("1,2\n"))
    assert csv.field_size_limit() == before


def test_missing_file_folder_and_path_that_is_none(tmp_path):
    with pytest.raises(
        DataError, match=re.escape(f"{tmp_path / 'no.csv'} does not exist. Give the path of a CSV file.")
    ):
        read_table(tmp_path / "no.csv")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} cannot be read: Is a directory.")):
        read_table(str(tmp_path))
    with pytest.raises(DataError, match="is no path: it holds a null character"):
        read_table("a\0b")


def test_columns_by_name_and_position(table):
    read = read_table(table("alpha,beta,gamma\n1,2,3\n"))
    assert [read.column_name(column) for column in (0, 2, -1, -3, "beta")] == [
        "alpha",
        "gamma",
        "gamma",
        "alpha",
        "beta",
    ]
    with pytest.raises(DataError, match="has no column 'bta'. Did you mean \"beta\"\\? Known: alpha, beta, gamma"):
        read.column_name("bta")
    for position in (3, -4):
        with pytest.raises(DataError, match=f"has no column {position}: it has 3, 0 to 2. Names: alpha, beta, gamma"):
            read.column_name(position)
    for wrong in (True, 1.0, None):
        with pytest.raises(ArgumentError, match=f"{wrong!r} is no column"):
            read.column_name(wrong)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "?", "NA", "null", "-"])
def test_cell_without_a_value_is_refused_with_line_column_and_count(table, cell):
    path = table(f"a,b\n1,2\n3,{cell}\n5,{cell}\n")
    shown = "empty" if not cell.strip() else repr(cell)
    with pytest.raises(
        DataError, match=re.escape(f"line 3, column 'b' is {shown}; 2 of 3 cells of this column")
    ) as caught:
        read_table(path, header=True).numbers("b")
    assert (caught.value.line, caught.value.count, caught.value.path) == (3, 2, path)


@pytest.mark.parametrize("cell", ["abc", "inf", "-Infinity", "1_000", "1e999", "0x10", "1 2", '"1,5"'])
def test_cell_that_is_no_finite_number_is_refused_with_line_column_and_count(table, cell):
    path = table(f"a,b\n1,2\n3,{cell}\n")
    with pytest.raises(DataError, match=r"line 3, column 'b' is .*no number; 1 of 2 .*categorical=\['b'\]") as caught:
        read_table(path, header=True).numbers("b")
    assert (caught.value.line, caught.value.count) == (3, 1)


def test_row_of_empty_cells_is_not_left_out_in_silence(table):
    with pytest.raises(DataError, match="line 3, column 'a' is empty; 1 of 3"):
        read_table(table("a,b\n1,2\n,\n3,4\n")).numbers("a")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is no regular file"):
        read_table(tmp_path / "pipe.csv")
