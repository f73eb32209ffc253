from __future__ import annotations

import math

import pytest
import torch

from velodrome.errors import DataError, RefusedError
from velodrome.recipes.predictions import interpret, write_csv


def test_interpret_cross_entropy_softmaxes_logits():
    table = interpret(torch.tensor([[0.0, math.log(3)]]), loss="cross_entropy")
    assert table.header == ["index", "predicted", "p_0", "p_1"]
    assert table.rows == [[0, 1, "0.25", "0.75"]]  # 1/4 and 3/4


def test_interpret_nll_takes_exp_of_log_probabilities():
    assert interpret(torch.tensor([[0.75, 0.25]]).log(), loss="nll").rows == [[0, 0, "0.75", "0.25"]]


def test_interpret_class_names_make_a_label_column():
    table = interpret(torch.tensor([[2.0, 0.0]]), loss="cross_entropy", class_names=("cat", "dog"))
    assert table.header == ["index", "predicted", "label", "p_cat", "p_dog"]
    assert table.rows[0][:3] == [0, 0, "cat"]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_interpret_bce_gives_both_probabilities(shape):
    table = interpret(torch.tensor([0.25, 0.5, 0.75]).reshape(shape), loss="bce")
    assert [row[1] for row in table.rows] == [0, 0, 1]  # class 1 above 0.5, as the accuracy metric counts
    assert table.rows[0][2:] == ["0.75", "0.25"]


def test_interpret_bce_with_logits_is_sigmoid():
    table = interpret(torch.tensor([[math.log(3)]]), loss="bce_with_logits")
    assert table.rows == [[0, 1, "0.25", "0.75"]]


def test_interpret_several_labels_predicts_each_above_half():
    assert interpret(torch.tensor([[0.75, 0.25, 1.0]]), loss="bce").rows[0][1] == "0 2"


def test_interpret_other_losses_give_the_outputs():
    table = interpret(torch.tensor([[1.5], [2.0]]), loss="mse")
    assert (table.header, table.rows) == (["index", "output_0"], [[0, "1.5"], [1, "2"]])


def test_interpret_wrong_shape_is_refused():
    with pytest.raises(DataError, match=r"shape \(2, 3, 4\).*must be \(N, classes\)"):
        interpret(torch.zeros(2, 3, 4), loss="cross_entropy")


def test_interpret_no_tensor_is_refused():
    with pytest.raises(DataError, match="returned a list"):
        interpret([torch.zeros(2)], loss="cross_entropy")  # pyright: ignore[reportArgumentType]


def test_write_csv_writes_unicode_and_leaves_no_temporary_file(tmp_path):
    table = interpret(torch.tensor([[1.0, 0.0]]), loss="cross_entropy", class_names=("Fuß, groß", "b"))
    write_csv(tmp_path / "p.csv", table)
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[0] == 'index,predicted,label,"p_Fuß, groß",p_b'
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_write_csv_into_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="cannot be written: No such file or directory"):
        write_csv(tmp_path / "no" / "p.csv", interpret(torch.zeros(1, 2), loss="mse"))
