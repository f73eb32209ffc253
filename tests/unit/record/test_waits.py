"""Whose line a wait is; and that whoever watches some batches is gone after them."""

import statistics
import sys
import warnings
from contextlib import contextmanager, nullcontext

import torch

from velodrome.record.glance import Glance
from velodrome.record.waits import FoundWaits, WaitFinder, _Reads
from velodrome.record.watch import Watchers

CPU = torch.device("cpu")


def finder():
    return WaitFinder(range(3), device=CPU, say=lambda line: None)


def test_a_warning_of_the_drivers_names_the_line_that_waited_and_not_pythons_own_file():
    found = finder()
    found.num_seen = 1
    mode = _Reads(found._found.add, "cpu")
    with found._hearing_warnings(mode):
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", UserWarning, stacklevel=1)
    (line,) = found.sentences
    assert "test_waits.py:" in line
    assert "(a synchronizing operation, 1 times a batch)" in line


def test_other_warnings_are_shown_and_that_of_the_prototype_is_not():
    found = finder()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with found._hearing_warnings(_Reads(found._found.add, "cpu")):
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(each.message) for each in shown] == ["something else"]
    assert found.sentences == []


def test_a_read_inside_of_pythons_own_code_is_that_of_whoever_called_it():
    found = finder()
    with found.around(0):
        statistics.fmean([torch.ones(1), torch.ones(1)])
    found.num_seen = 1
    assert found.sentences
    assert all("test_waits.py:" in line for line in found.sentences)


def test_a_frame_of_pythons_own_alone_is_nobodys():
    found = FoundWaits(CPU)
    exec(
        compile("import sys; add('item', 0.0, sys._getframe())", statistics.__file__, "exec"), {"add": add_alone(found)}
    )
    assert found.sentences(1) == []


def add_alone(found):
    """Return `add` for a frame that nobody called."""

    class Alone:
        def __init__(self, frame):
            self.f_code, self.f_lineno, self.f_back = frame.f_code, frame.f_lineno, None

    return lambda call, seconds, frame: found.add(call, seconds, Alone(frame))


@contextmanager
def counting(name):
    yield


def test_after_the_last_batch_that_is_watched_the_loop_gets_its_own_iterator():
    watchers = Watchers([Glance(CPU)])  # looks at batches 2 to 4, counted from 0
    batches = iter(range(6))
    assert list(watchers.watch(batches, counting)) == list(range(6))
    later = iter(range(6))
    assert watchers.watch(later, counting) is later


def test_a_loop_that_is_held_open_in_a_batch_that_is_watched_leaves_nothing_when_it_is_closed():
    loop = Watchers([Glance(CPU)]).watch(iter(range(6)), lambda part: nullcontext())
    assert [next(loop) for _ in range(3)] == [0, 1, 2]
    assert sys.getprofile() is not None
    loop.close()
    assert sys.getprofile() is None
