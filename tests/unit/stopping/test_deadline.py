"""When a run with a deadline stops: the arithmetic, by a clock that the test sets."""

import math

import pytest

from velodrome.errors import ArgumentError
from velodrome.stopping.deadline import NO_DEADLINE, Deadline, estimate_save_s, job_end, parse_stop_after


def test_two_saves_or_five_seconds_are_kept_for_the_end():
    def leave_at(save_s, *, seconds=1000.0):
        return Deadline(begins_at=100.0, ends_at=100.0 + seconds, save_s=save_s).leave_at

    assert leave_at(0.1) == 1100 - 5
    assert leave_at(30.0) == 1100 - 2 * 30
    assert leave_at(0.1, seconds=20.0) == 120 - 0.1 * 20  # of a short time a tenth
    assert leave_at(400.0) == 1100 - 0.5 * 1000  # half of the time is for training all the same


def test_the_slowest_save_counts_and_the_first_one_replaces_the_estimate():
    deadline = Deadline(begins_at=0.0, ends_at=1000.0, save_s=estimate_save_s(10**9))
    assert deadline.reserve_s == 2 * 3 * 10**9 / 200e6  # 30 s
    for seconds, reserve in ((4.0, 8.0), (9.0, 18.0), (3.0, 18.0)):
        deadline.count_save(seconds)
        assert deadline.reserve_s == reserve


def test_a_batch_that_would_end_too_late_is_not_begun():
    deadline = Deadline(begins_at=0.0, ends_at=1000.0, save_s=0.0)  # to stop at 995
    times = [100.0 * n for n in range(1, 10)]  # a batch takes 100 s
    assert [deadline.is_near(now) for now in times] == [False] * 8 + [True]  # from 900 the next would end at 1000


def test_one_long_batch_is_not_expected_again():
    deadline = Deadline(begins_at=0.0, ends_at=1000.0, save_s=0.0)
    assert not deadline.is_near(600.0)  # compiled for ten minutes
    assert not deadline.is_near(600.1)
    assert not deadline.is_near(994.0 - 0.2)
    assert deadline.is_near(995.0)


def test_without_a_deadline_it_is_never_near():
    NO_DEADLINE.count_save(10.0)
    assert not NO_DEADLINE.is_near(1e12)


def test_stop_after_is_a_time():
    assert parse_stop_after(None) == math.inf
    assert [parse_stop_after(text) for text in ("50 minutes", "50m", "8h", "90s")] == [3000, 3000, 8 * 3600, 90]
    with pytest.raises(
        ArgumentError, match=r"stop_after='5 epochs' is in epochs. It must be a time, such as \"50 minutes\""
    ):
        parse_stop_after("5 epochs")


def test_the_end_of_a_job_is_read_from_its_environment():
    assert job_end({}, unix_now=1000.0) == (math.inf, "")
    assert job_end({"SLURM_JOB_END_TIME": "1600"}, unix_now=1000.0) == (600.0, "")


@pytest.mark.parametrize(
    ("text", "told"), [("900", "passed 100 seconds ago"), ("soon", "is no number of seconds since 1970")]
)
def test_an_end_that_cannot_be_true_is_said_and_not_believed(text, told):
    left, problem = job_end({"SLURM_JOB_END_TIME": text}, unix_now=1000.0)
    assert left == math.inf
    assert told in problem
