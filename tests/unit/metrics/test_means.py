import math
import weakref

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.errors import ArgumentError
from velodrome.metrics.means import RunningMeans

numbers = st.floats(-1e6, 1e6, width=32)


@given(
    values=st.lists(numbers, min_size=1, max_size=200),
    sizes=st.lists(st.integers(1, 7), min_size=1),
    as_means=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_mean_does_not_depend_on_how_values_are_split_into_batches(values, sizes, as_means):
    means = RunningMeans()
    left, turn = torch.tensor(values, dtype=torch.float64), 0
    while len(left):
        size = sizes[turn % len(sizes)]
        batch, left, turn = left[:size], left[size:], turn + 1
        means.add("x", batch.mean() if as_means else batch, len(batch))
    expected = math.fsum(values) / len(values)
    assert means.means_blocking()["x"] == pytest.approx(expected, rel=1e-12, abs=1e-6)


def test_ragged_batches_are_weighted_by_their_samples():
    means = RunningMeans()
    means.add("loss", torch.tensor(1.0), 4)
    means.add("loss", torch.tensor(3.5), 1)
    assert means.means_blocking() == {"loss": (4 * 1.0 + 3.5) / 5}


def test_float32_losses_of_many_steps_are_summed_in_float64():
    means = RunningMeans()
    value = torch.tensor(0.1)
    for _ in range(1000):
        means.add("loss", value, 64)
    assert means.means_blocking()["loss"] == pytest.approx(float(numpy.float32(0.1)), rel=1e-14)


def test_numbers_tensors_and_vectors_of_one_name_make_one_mean():
    means = RunningMeans()
    means.add("x", 2.0, 2)
    means.add("x", torch.tensor([1, 0, 1]), 3)
    means.add("x", torch.tensor(True), 1)
    means.add("x", numpy.float32(4), 1)
    assert means.means_blocking()["x"] == (2 * 2.0 + 2 + 1 + 4) / 7


def test_drain_gives_the_means_since_the_last_one_and_totals_go_on():
    means = RunningMeans()
    means.add("x", torch.tensor(1.0), 1)
    assert means.drain_blocking() == {"x": 1.0}
    assert means.drain_blocking() == {}
    means.add("x", torch.tensor(4.0), 2)
    assert means.drain_blocking() == {"x": 4.0}
    assert means.means_blocking() == {"x": (1 + 2 * 4) / 3}
    means.reset()
    assert means.means_blocking() == {}


def test_nan_stays_nan_and_infinity_infinity():
    means = RunningMeans()
    for name, value in (("nan", math.nan), ("inf", math.inf)):
        means.add(name, torch.tensor(1.0), 1)
        means.add(name, torch.tensor(value), 1)
        means.add(f"{name} number", value, 1)
    result = means.means_blocking()
    assert math.isnan(result["nan"])
    assert math.isnan(result["nan number"])
    assert result["inf"] == result["inf number"] == math.inf


def test_mean_of_no_items_counts_for_nothing():
    means = RunningMeans()
    means.add("x", torch.tensor(2.0), 1)
    means.add("x", torch.tensor(math.nan), 0)
    means.add("x", math.nan, 0)
    means.add("x", torch.zeros(0), 0)
    means.add("y", torch.tensor(math.nan), 0)
    assert means.means_blocking() == {"x": 2.0}


def test_values_do_not_keep_the_graph():
    means = RunningMeans()
    weight = torch.ones(2, requires_grad=True)
    hooked = (weight * 2).sum()
    alive = torch.ones(())
    hooked.grad_fn.metadata["alive"] = alive
    watcher = weakref.ref(alive)
    means.add("x", hooked, 1)
    del hooked, alive
    assert watcher() is None
    assert means.means_blocking() == {"x": 4.0}


@pytest.mark.parametrize("value", ["text", None, [1, 2]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ArgumentError, match=r"^x=.* cannot be averaged. Log numbers or tensors"):
        RunningMeans().add("x", value, 1)


@pytest.mark.parametrize("make", [float, torch.tensor])
def test_endless_names_are_dropped_and_counted(make):
    means = RunningMeans()
    for index in range(1000):
        means.add(f"x{index}", make(1.0), 1)
        if index % 300 == 0:
            means.drain_blocking()
    means.add("x0", make(1.0), 1)
    means.add("new", torch.tensor(1.0), 1)
    means.add("newer", 1.0, 1)
    assert means.num_dropped == 2
    assert len(means.means_blocking()) == 1000


def test_weights_on_the_device_count_as_numbers_do():
    means = RunningMeans()
    for value, weight in ((1.0, 4), (3.5, 1), (math.nan, 0), (math.inf, 0)):
        means.add("loss", torch.tensor(value), torch.tensor(weight))
    means.add("loss", 2.0, torch.tensor([3.0]))
    means.add("loss", torch.tensor(7.0), 2)
    assert means.means_blocking() == {"loss": (4 * 1.0 + 3.5 + 3 * 2.0 + 2 * 7.0) / 10}
    assert type(means.means_blocking()["loss"]) is float


def test_mean_of_no_items_on_the_device_is_no_value_and_nan_of_some_is_nan():
    means = RunningMeans()
    means.add("none", torch.tensor(math.nan), torch.tensor(0))
    means.add("some", torch.tensor(math.nan), torch.tensor(1))
    result = means.means_blocking()
    assert list(result) == ["some"]
    assert math.isnan(result["some"])


def test_weight_that_changes_afterwards_counts_as_it_was():
    means, count = RunningMeans(), torch.tensor(1)
    means.add("loss", torch.tensor(1.0), count)
    count += 2
    means.add("loss", torch.tensor(2.0), count)
    assert means.means_blocking() == {"loss": (1 * 1.0 + 3 * 2.0) / 4}


def test_single_value_is_a_mean_whatever_its_shape():
    means = RunningMeans()
    means.add("loss", torch.tensor([1.0]), 4)
    means.add("loss", torch.tensor(3.5), 1)
    assert means.means_blocking() == {"loss": (4 * 1.0 + 3.5) / 5}


def test_values_from_two_devices_are_summed_apart():
    # "meta" stands for a second device: it has shapes and no numbers, so the sums cannot be read.
    means = RunningMeans()
    for device in ("cpu", "meta", "cpu"):
        means.add("scalar", torch.ones((), device=device), 1)
        means.add("vector", torch.ones(2, device=device), 2)
        means.add("weighted", torch.ones((), device=device), torch.ones(()))
    with pytest.raises(NotImplementedError, match="meta"):
        means.drain_blocking()


def test_weight_of_several_numbers_is_refused():
    with pytest.raises(ArgumentError, match=r"loss was given items of shape \(2,\).*take their sum\(\)"):
        RunningMeans().add("loss", torch.tensor(1.0), torch.ones(2))
