import numpy
import pytest
import torch

from velodrome.data.columns import Columns, columns_from
from velodrome.errors import DataError


def test_columns_from_arrays_keeps_dtypes_and_shares_memory():
    for dtype in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool", "complex64"):
        array = numpy.ones((3, 2), dtype=dtype)
        tensor = columns_from(array).tensors
        assert str(tensor.dtype) == f"torch.{dtype}"
        array[0, 0] = 0
        assert tensor[0, 0] == 0


def test_columns_from_unusual_arrays_holds_the_same_numbers():
    plain = numpy.arange(6.0).reshape(3, 2)
    read_only = plain.copy()
    read_only.flags.writeable = False
    for array in (plain[::-1][::-1], numpy.asfortranarray(plain), plain.astype(">f8"), read_only):
        tensor = columns_from(array).tensors
        assert tensor.dtype == torch.float64
        assert tensor.tolist() == plain.tolist()


def test_columns_from_keeps_the_shape_of_what_was_given():
    x, y = torch.zeros(2, 3), numpy.zeros(2)
    assert isinstance(columns_from(x).tensors, torch.Tensor)
    assert [tuple(tensor.shape) for tensor in columns_from((x, y)).tensors] == [(2, 3), (2,)]
    assert list(columns_from({"a": x, "b": y}).tensors) == ["a", "b"]
    assert not columns_from(torch.zeros(2, requires_grad=True)).tensors.requires_grad


@pytest.mark.parametrize("data", [[torch.zeros(2)], (), {}, (torch.zeros(2), [1, 2]), "text", None, 5])
def test_columns_from_anything_else_is_none(data):
    assert columns_from(data) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (numpy.array([1, "a"], dtype=object), "dtype object is not numeric. Convert it to numbers first"),
        (numpy.array(["a", "b"]), "dtype <U1 is not numeric"),
        (numpy.array(["2026-01-01"], dtype="datetime64[D]"), "is not numeric"),
        (numpy.zeros(2, dtype=numpy.longdouble), "has no counterpart in PyTorch. Convert it first: array.astype"),
        ((torch.zeros(3), numpy.zeros(4)), "tensors of 3, 4 samples. All must have the same number"),
        (torch.tensor(1.0), "a tensor without dimensions. The first dimension of each must count the samples"),
        (numpy.array(1.0), "a tensor without dimensions"),
        ((torch.zeros(3), torch.tensor(1)), "a tensor without dimensions"),
    ],
)
def test_columns_from_what_cannot_be_batched_is_refused(data, message):
    with pytest.raises(DataError) as caught:
        columns_from(data)
    assert message in str(caught.value)


def test_columns_of_no_tensor_are_refused_and_named():
    with pytest.raises(DataError, match=r"^val holds no tensor. Give \(inputs, targets\)"):
        Columns((), name="val")


@pytest.mark.parametrize("num_samples", [1, 7, 1000])
def test_batches_of_large_samples_and_of_many_chunks_are_the_rows_in_order(num_samples):
    rows = torch.arange(num_samples).unsqueeze(1).expand(-1, 500)  # 4 kB a sample: chunks of 262
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    batches = list(Columns((rows, rows[:, 0])).batches(order, 8))
    assert [len(first) for first, _ in batches] == [8] * (num_samples // 8) + [num_samples % 8] * (num_samples % 8 > 0)
    assert torch.equal(torch.cat([second for _, second in batches]), order)
    assert all(torch.equal(first[:, 499], second) for first, second in batches)


def test_batches_of_samples_without_numbers_and_of_no_samples():
    assert [batch.shape for batch in Columns(torch.zeros(3, 0)).batches(torch.arange(3), 2)] == [(2, 0), (1, 0)]
    assert list(Columns(torch.zeros(3)).batches(torch.arange(0), 2)) == []


def test_tensors_made_in_inference_mode_are_copied_once_and_can_be_trained_on():
    with torch.inference_mode():
        columns = Columns((torch.arange(4.0), torch.zeros(4)))
    weight = torch.ones(1, requires_grad=True)
    first = next(columns.batches(torch.arange(4), 2))
    (first[0] * weight).sum().backward()
    assert weight.grad.item() == 0 + 1
    copies = columns.tensors
    list(columns.batches(torch.arange(4), 2))
    assert all(tensor is copy and not copy.is_inference() for tensor, copy in zip(columns.tensors, copies, strict=True))


def test_size_select_and_samples_by_index():
    columns = Columns((torch.zeros(4, 2), torch.arange(4)))
    assert columns.nbytes == 4 * 2 * 4 + 4 * 8
    assert len(columns) == columns.num_samples == 4
    part = columns.select(torch.tensor([3, 3, 0]))
    assert part.tensors[1].tolist() == [3, 3, 0]
    part.tensors[1].zero_()
    assert columns[3][1] == 3
    assert columns.to(torch.device("cpu")) is columns
    assert columns.to(torch.device("meta")).device.type == "meta"
