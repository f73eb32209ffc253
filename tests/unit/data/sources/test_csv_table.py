import csv
import json
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.data.sources import load_csv, prepare_csv_rows
from velodrome.errors import ArgumentError, DataError


@pytest.fixture
def table(tmp_path):
    """Returns a function that writes rows as a file and gives its path."""

    def write(*rows, name="table.csv"):
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return write


def load(path, **arguments):
    """Load without printing; the last row validates unless told otherwise."""
    if not {"val_fraction", "train_rows", "val_path"} & set(arguments):
        arguments["train_rows"] = len(path.read_text(encoding="utf-8").splitlines()) - 2
    return load_csv(path, say=str, **arguments)


def through_json(values):
    return json.loads(json.dumps(values))


# ---- standardisation and categories


def test_numbers_are_standardised_with_training_statistics_only(table):
    # Training a: 1, 3 -> mean 2, deviation 1. Training b: 0, 4 -> mean 2, deviation 2. The last row is not in them.
    splits = load(table("a,b,y", "1,0,0", "3,4,1", "102,100,1"), train_rows=2)
    assert splits.train[0].tolist() == [[-1, -1], [1, 1]]
    assert splits.val[0].tolist() == [[100, 49]]
    assert splits.train[0].dtype == splits.val[0].dtype == torch.float32
    assert splits.preprocessing["numeric"] == {"a": {"mean": 2, "std": 1}, "b": {"mean": 2, "std": 2}}


@pytest.mark.parametrize("value", ["0.1", "1e300", "7"])
def test_constant_column_becomes_zero(table, value):
    splits = load(table("a,b,y", f"1,{value},0", f"2,{value},1", f"3,{value},0", f"4,{value},1"), train_rows=3)
    assert splits.train[0][:, 1].tolist() == [0, 0, 0]
    assert splits.val[0][:, 1].tolist() == [0]


@pytest.mark.parametrize("unit", ["1e-200", "1e200", "1.5e308", "1e-320"])
def test_numbers_near_the_ends_of_float64_are_standardised(table, unit):
    splits = load(table("a,y", f"{unit},0", f"-{unit},1", f"{unit},0"), train_rows=2)
    assert splits.train[0].tolist() == [[1], [-1]]


def test_input_that_float32_cannot_hold_is_refused_with_its_line(table):
    with pytest.raises(
        DataError, match=r"line 4 gives an input of 2e\+300; 1 of 1 rows do so. Float32 ends at 3.4e38"
    ) as e:
        load(table("a,y", "0,0", "1,1", "1e300,1"), train_rows=2)
    assert e.value.line == 4
    with pytest.raises(DataError, match=r"line 4 gives a target of 1e\+39"):
        load(table("a,y", "0,0.5", "1,1.5", "1,1e39"), train_rows=2, task="regression")


def test_categories_become_one_input_each_and_an_unseen_one_gives_zeros_with_a_warning(table):
    said = []
    path = table("c,a,y", "red,1,0", "blue,3,1", "red,1,0", "groß,3,1")
    splits = load_csv(path, target="y", categorical=["c"], train_rows=3, say=said.append)
    assert splits.preprocessing["categorical"] == {"c": ["blue", "red"]}
    assert splits.train[0][:, 1:].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert splits.val[0][:, 1:].tolist() == [[0, 0]]
    assert said == [
        "warning: column 'c' of table.csv has values that training never saw (groß); they count as none of the known ones.",
        splits.origin,
    ]
    assert splits.origin == "table.csv: 3 + 1 rows, 3 inputs, target y (binary)"


def test_quoted_commas_and_columns_by_position(table):
    path = table('1,"a, b",0', '2,"c",1', '3,"a, b",0', "4,c,1")
    splits = load(path, target=2, categorical=[-2], train_rows=2)
    assert splits.preprocessing["categorical"] == {"column 1": ["a, b", "c"]}
    assert splits.train[0].tolist() == [[-1, 1, 0], [1, 0, 1]]


def test_only_named_columns_are_read(table):
    splits = load(table("id,a,y", "x1,1,0", "x2,3,1", ",5,0"), numeric=["a"], train_rows=2)
    assert splits.train[0].tolist() == [[-1], [1]]


# ---- targets


@pytest.mark.parametrize(
    ("targets", "task", "found", "classes", "values"),
    [
        (["0", "1", "0"], "auto", "binary", ("0", "1"), [[0.0], [1.0], [0.0]]),
        (["no", "yes", "no"], "auto", "binary", ("no", "yes"), [[0.0], [1.0], [0.0]]),
        (["1", "1.0", "2"], "auto", "binary", ("1", "2"), [[0.0], [0.0], [1.0]]),
        (["01", "2e0", "+1"], "auto", "binary", ("1", "2"), [[0.0], [1.0], [0.0]]),
        (["-0", "0.0", "1.50"], "auto", "binary", ("0", "1.5"), [[0.0], [0.0], [1.0]]),
        (["10", "9", "2"], "auto", "multiclass", ("2", "9", "10"), [2, 1, 0]),
        (["10", "9.0", "x"], "auto", "multiclass", ("10", "9.0", "x"), [0, 1, 2]),
        (["c", "b", "a"], "auto", "multiclass", ("a", "b", "c"), [2, 1, 0]),
        (["0", "1", "0"], "multiclass", "multiclass", ("0", "1"), [0, 1, 0]),
        (["0", "1", "0"], "regression", "regression", (), [[0.0], [1.0], [0.0]]),
        (["0.5", "1", "2"], "auto", "regression", (), [[0.5], [1.0], [2.0]]),
        (["9007199254740993", "9007199254740992", "1"], "auto", "multiclass", None, [2, 1, 0]),
    ],
)
def test_task_and_classes(table, targets, task, found, classes, values):
    rows = [f"{index},{target}" for index, target in enumerate(targets)]
    splits = load(table("a,y", *rows, rows[0]), train_rows=3, task=task)
    assert splits.preprocessing["task"] == found
    assert classes is None or splits.class_names == classes
    assert splits.train[1].tolist() == values
    assert splits.train[1].dtype == (torch.int64 if found == "multiclass" else torch.float32)
    assert splits.val[1].tolist() == values[:1]


@pytest.mark.parametrize(("num_values", "task"), [(20, "multiclass"), (21, "regression")])
def test_whole_numbers_are_classes_up_to_twenty(table, num_values, task):
    splits = load(table("a,y", *[f"{value},{value}" for value in range(num_values)]))
    assert splits.preprocessing["task"] == task


@pytest.mark.parametrize(
    ("targets", "task", "message"),
    [
        (["0", "0", "0"], "auto", "is '0' in all 3 rows. There is nothing to learn"),
        (["1", "1.0", "01"], "auto", "is '1' in all 3 rows"),
        (["a", "b", "c"], "binary", r"has 3 values \(a, b, c\). A binary target has two"),
        (["a", "b", "a"], "regression", "column 'y' is 'a', which is no number; 3 of 3"),
        (["0", "nan", "1"], "auto", "line 3, column 'y' is 'nan'; 1 of 3 cells"),
    ],
)
def test_target_that_cannot_be_learned_is_refused(table, targets, task, message):
    with pytest.raises(DataError, match=message):
        load(table("a,y", *[f"{index},{target}" for index, target in enumerate(targets)]), task=task, header=True)


def test_columns_that_do_not_fit_together_are_refused(table):
    path = table("a,b,y", "1,2,0", "3,4,1", "5,6,0")
    for arguments in ({"numeric": ["a", "y"]}, {"numeric": ["a"], "categorical": [0]}, {"numeric": []}):
        with pytest.raises(ArgumentError, match="The columns do not fit together: target 'y'.*at least one input"):
            load(path, **arguments)
    with pytest.raises(DataError, match="has no column 'z'. Known: a, b, y"):
        load(path, target="z")
    with pytest.raises(ArgumentError, match="True is no column"):
        load(path, target=True)
    with pytest.raises(ArgumentError, match="do not fit together"):
        load(table("y", "1", "2", "3", name="lone.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "clasify"}, "task='clasify' is unknown. It is one of auto, binary"),
        ({"seed": True}, "seed=True is no seed"),
        ({"seed": -1}, "seed=-1 is no seed"),
        ({"seed": 1 << 64}, "is no seed. It must be a whole number from 0"),
        ({"header": "yes"}, "header='yes' is not known"),
        ({"categorical": "color"}, r"categorical='color' is no list of columns. Write categorical=\['color'\]"),
        ({"numeric": 1}, r"numeric=1 is no list of columns. Write numeric=\[1\]"),
        ({"val_fraction": True}, "val_fraction=True is no number"),
        ({"val_fraction": "0.2"}, "val_fraction='0.2' is no number. It must lie between 0 and 1"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(table, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        load_csv(table("a,y", "1,0", "2,1"), **({"val_fraction": 0.5} | arguments))


# ---- splits


@given(num_rows=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_split_by_fraction_is_disjoint_complete_and_seeded(tmp_path_factory, num_rows, fraction, seed):
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_text("a,y\n" + "".join(f"{row},{row / 7}\n" for row in range(num_rows)))
    num_val = round(num_rows * fraction)
    if not 0 < num_val < num_rows:
        with pytest.raises(ArgumentError, match=f"of the {num_rows} rows .* is {num_val}.*rows on both sides"):
            load(path, val_fraction=fraction, seed=seed)
        return
    splits, again = (load(path, val_fraction=fraction, seed=seed, task="regression") for _ in range(2))
    rows = [(part[1][:, 0].double() * 7).round().int().tolist() for part in (splits.train, splits.val)]
    assert len(rows[1]) == num_val
    assert sorted(rows[0] + rows[1]) == list(range(num_rows))
    assert torch.equal(splits.val[0], again.val[0])


def test_split_by_fraction_depends_on_the_seed(table):
    path = table("a,y", *[f"{row},{row / 7}" for row in range(50)])
    one, other = (load(path, val_fraction=0.5, seed=seed).val[1] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_split_by_count_takes_the_first_rows(table):
    splits = load(table("a,y", *[f"{row},{row / 8}" for row in range(10)]), train_rows=7)
    assert (splits.train[1][:, 0] * 8).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (splits.val[1][:, 0] * 8).tolist() == [7, 8, 9]


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.1, 1.1, 0.01, 0.99, math.nan, math.inf])
def test_fraction_that_leaves_one_side_empty_is_refused(table, fraction):
    with pytest.raises(ArgumentError, match=r"val_fraction=.* of the 4 rows of .*It must lie between 0 and 1"):
        load(table("a,y", "1,0", "2,1", "3,0", "4,1"), val_fraction=fraction)


def test_one_row_cannot_be_split(table):
    with pytest.raises(ArgumentError, match="val_fraction=0.5 of the 1 rows"):
        load(table("a,y", "1,0"), val_fraction=0.5)
    with pytest.raises(DataError, match="train_rows=1 leaves nothing to validate: .* has 1 rows"):
        load(table("a,y", "1,0"), train_rows=1)


def test_train_rows_out_of_range_is_refused(table):
    path = table("a,y", "1,0", "2,1", "3,0")
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(ArgumentError, match=f"train_rows={wrong!r} is not a number of rows"):
            load(path, train_rows=wrong)
    for many in (3, 4):
        with pytest.raises(DataError, match=f"train_rows={many} leaves nothing to validate.*Use fewer than 3"):
            load(path, train_rows=many)


def test_exactly_one_split_must_be_given(table):
    path = table("a,y", "1,0", "2,1")
    with pytest.raises(ArgumentError, match=r"^No split was given. Say once what validates"):
        load_csv(path)
    with pytest.raises(ArgumentError, match=r"^val_fraction and train_rows was given"):
        load_csv(path, val_fraction=0.5, train_rows=1)


def test_split_by_file_uses_training_statistics_and_classes(table):
    path = table("a,y", "1,0", "3,1")
    other = table("y,extra,a", "1.0,x,5", "00,x,2", name="val.csv")
    splits = load(path, val_path=other)
    assert splits.val[0].tolist() == [[3], [0]]
    assert splits.val[1].tolist() == [[1], [0]]
    assert len(splits.train[0]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,y", "1,2"], r"val.csv, line 2, column 'y' holds '2', which is none of the classes 0, 1"),
        (["a,z", "1,2"], "val.csv has no column 'y'"),
        (["5,1", "6,0"], r"The first row of .*val.csv \(5, 1\) holds none of the names.*in their order: a"),
    ],
)
def test_validation_file_that_does_not_fit_is_refused(table, rows, message):
    with pytest.raises(DataError, match=message):
        load(table("a,y", "1,0", "3,1"), val_path=table(*rows, name="val.csv"))


# ---- new rows


number = st.floats(-1e6, 1e6).map(lambda value: repr(round(value, 6)))
word = st.sampled_from(["red", "groß", "a, b", 'say "x"', "blau"])


@given(
    rows=st.lists(st.tuples(number, word, number, st.sampled_from("01")), min_size=3, max_size=8),
    has_names=st.booleans(),
    has_target=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_new_rows_are_prepared_to_the_same_bits(tmp_path_factory, rows, has_names, has_target):
    folder = tmp_path_factory.mktemp("csv")
    rows = [*rows, ("1", "red", "2", "0"), ("3", "blau", "2", "1")]

    def write(name, columns, rows):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [[row[column] for column in columns] for row in ([("größe", "farbe", "x", "y")] * has_names + rows)]
            )
        return folder / name

    splits = load(write("all.csv", [0, 1, 2, 3], rows), target=3, categorical=[1], train_rows=len(rows) - 2)
    preprocessing = through_json(splits.preprocessing)
    columns = [0, 1, 2, 3] if has_target else [0, 1, 2]
    both = torch.cat([splits.train[0], splits.val[0]])
    assert torch.equal(prepare_csv_rows(write("new.csv", columns, rows), preprocessing, say=str), both)
    assert torch.equal(prepare_csv_rows(write("one.csv", columns, rows[:1]), preprocessing, say=str), both[:1])
    if has_names:
        assert torch.equal(prepare_csv_rows(write("turned.csv", columns[::-1], rows), preprocessing, say=str), both)


def test_new_rows_may_have_more_columns_when_they_have_names(table):
    splits = load(table("a,b,y", "1,2,0", "3,4,1", "5,6,0"), train_rows=2)
    new = table("extra,b,c,a", "?,4,,3", name="new.csv")
    assert prepare_csv_rows(new, splits.preprocessing).tolist() == [[1, 1]]


def test_new_rows_whose_names_are_numbers_or_words_need_no_hint(table):
    splits = load(
        table("2019,kind,y", "1,a,0", "3,b,1", "5,a,0"), header=True, numeric=[0], categorical=[1], train_rows=2
    )
    new = table("2019,kind", "3,b", name="new.csv")
    assert prepare_csv_rows(new, through_json(splits.preprocessing)).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("header", [None, False])
def test_new_rows_with_names_for_a_table_without_any_go_by_position(table, header):
    splits = load(table("1,2,0", "3,4,1", "5,6,0"), header=header, train_rows=2)
    said = []
    new = table("a,b", "3,4", "1,2", name="new.csv")
    assert prepare_csv_rows(new, splits.preprocessing, say=said.append).tolist() == [[1, 1], [-1, -1]]
    assert said == ["new.csv: the first row holds no number and counts as names: a, b"]


def test_bad_cell_in_the_first_new_row_is_refused_and_not_taken_for_names(table):
    splits = load(table("1,2,0", "3,4,1", "5,6,0"), train_rows=2)
    with pytest.raises(DataError, match="line 1, column 'column 0' is 'abc', which is no number; 1 of 2"):
        prepare_csv_rows(table("abc,4", "1,2", name="new.csv"), splits.preprocessing)
    with pytest.raises(DataError, match="line 1, column 'column 0' is 'abc'"):
        prepare_csv_rows(table("abc,xyz", name="new.csv"), splits.preprocessing)


@pytest.mark.parametrize(
    ("training", "rows", "message"),
    [
        (
            ["a,b,y", "1,2,0", "3,4,1", "5,6,0"],
            ["1,2", "3,4"],
            r"The first row .*\(1, 2\) holds none of the names.*: a, b\.",
        ),
        (["a,b,y", "1,2,0", "3,4,1", "5,6,0"], ["a,c", "3,4"], "has no column 'b'"),
        (["a,b,y", "1,2,0", "3,4,1", "5,6,0"], ["a,b", "3,"], "line 2, column 'b' is empty; 1 of 1"),
        (["a,b,y", "1,2,0", "3,4,1", "5,6,0"], ["a,b"], "holds names of 2 columns and 0 rows"),
        (["1,2,0", "3,4,1", "5,6,0"], ["1", "2"], "has 1 columns. The training table had 3, its target included"),
        (["1,2,0", "3,4,1", "5,6,0"], ["1,2,3,4"], "has 4 columns. The training table had 3"),
    ],
)
def test_new_rows_that_do_not_fit_are_refused(table, training, rows, message):
    splits = load(table(*training), train_rows=2)
    with pytest.raises(DataError, match=message):
        prepare_csv_rows(table(*rows, name="new.csv"), splits.preprocessing)


def test_values_are_those_of_numpys_mean_and_deviation(table):
    values = numpy.random.default_rng(0).normal(3, 5, (20, 2))
    splits = load(table("a,b,y", *[f"{a!r},{b!r},{i % 2}" for i, (a, b) in enumerate(values.tolist())]), train_rows=15)
    expected = (values - values[:15].mean(axis=0)) / values[:15].std(axis=0)
    numpy.testing.assert_allclose(torch.cat([splits.train[0], splits.val[0]]).numpy(), expected, rtol=1e-6)
