from __future__ import annotations

from velodrome.distributed.pace import Pace


def noted(*intervals, size=4):
    """Return the pace after a beginning and these intervals of ten steps."""
    pace = Pace(size)
    pace.note([9.0] * size, 0)
    for number, own_s in enumerate(intervals, 1):
        pace.note(own_s, 10 * number)
    return pace


def test_a_rank_slower_than_one_and_a_half_medians_three_times_in_a_row_is_named_with_its_numbers():
    slow = [0.1, 0.1, 0.2, 0.1]
    assert noted(slow, slow).complaint() == ""
    assert (
        noted(slow, slow, slow)
        .complaint()
        .startswith(
            "Rank 2 takes 20 ms a step by itself, and the median of the 4 processes is 10 ms (2.0 times as long): all wait for it."
        )
    )


def test_once_slow_is_no_straggler_and_neither_is_another_one_each_time():
    slow, even = [0.1, 0.1, 0.2, 0.1], [0.1] * 4
    assert noted(slow, slow, even, slow).complaint() == ""
    assert noted(slow, slow, [0.1, 0.2, 0.1, 0.1], slow).complaint() == ""
    exactly = [0.1, 0.1, 0.15, 0.1]
    assert noted(exactly, exactly, exactly).complaint() == ""


def test_one_of_two_can_be_slow():
    assert noted([0.1, 0.2], [0.1, 0.2], [0.1, 0.2], size=2).complaint().startswith("Rank 1 takes 20 ms a step")


def test_times_too_short_to_matter_and_ends_of_phases_do_not_count():
    tiny = [0.001, 0.001, 0.005, 0.001]
    assert noted(tiny, tiny, tiny).complaint() == ""
    pace = noted([0.1] * 4)
    for _ in range(5):
        pace.note([5.0, 0.0, 0.0, 0.0], 10)  # no step since: rank 0 evaluates, or writes
    assert pace.complaint() == ""
    assert pace.step_ms == [10.0] * 4
    assert pace.describe().startswith("By itself a step took 10 ms in rank 0, 10 ms in rank 1, ")
    assert Pace(2).describe() == ""


def test_a_slow_rank_is_named_once():
    pace = noted(*[[0.1, 0.2]] * 5, size=2)
    assert pace.complaint()
    assert pace.complaint() == ""
