"""What the launcher makes of how its processes end."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from velodrome.distributed import launch as launching
from velodrome.distributed.launch import Failure, check_processes, launch, leave_failure
from velodrome.errors import ArgumentError


@pytest.mark.parametrize(
    ("exit_code", "sentence"),
    [
        (3, "Rank 1 ended with exit code 3."),
        (-9, "Rank 1 was killed by signal 9 (SIGKILL). The system does that when memory runs out."),
        (-11, "Rank 1 was killed by signal 11 (SIGSEGV)."),
        (-100, "Rank 1 was killed by signal 100 (an unknown signal)."),
    ],
)
def test_a_sentence_names_the_rank_and_its_end(exit_code, sentence):
    assert Failure(rank=1, exit_code=exit_code, told=None).sentence == sentence


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_numbers_of_processes_that_are_none_are_refused(number):
    with pytest.raises(ArgumentError, match="is not a number of processes. It must be a whole number of at least 1"):
        check_processes(number)


def test_what_a_process_leaves_is_read_by_the_launcher(tmp_path, monkeypatch):
    assert not leave_failure("DataError", "no samples", 2)  # nobody asks
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert leave_failure("DataError", "no samples", 2, problems=["a"])
    told = json.loads(json.loads(path.read_text())["message"]["message"])
    assert told == {"kind": "DataError", "message": "no samples", "exit_code": 2, "fields": {"problems": ["a"]}}
    assert not leave_failure("WorldError", "later", 1)  # the first one stays
    assert "no samples" in path.read_text()


def failure(exit_code, kind=None):
    told = {"kind": kind, "message": "m", "exit_code": 1, "fields": {}}
    message = "torch's own words" if kind is None else {"message": json.dumps(told)}
    return SimpleNamespace(exitcode=exit_code, message=message)


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ({0: failure(1, "WorldError"), 1: failure(-9)}, 1),  # rank 0 only noticed
        ({0: failure(-15), 1: failure(1, "DataError")}, 1),  # rank 0 was ended by the launcher
        ({0: failure(-15), 1: failure(1, "WorldError"), 2: failure(1)}, 2),
        ({0: failure(2, "DataError"), 1: failure(2, "DataError")}, 0),
    ],
)
def test_the_failure_that_the_others_follow_from_is_told(failures, rank):
    assert launching._first_failure(failures).rank == rank


def test_processes_get_their_rank_their_threads_and_their_arguments(tmp_path, monkeypatch):
    (tmp_path / "writes_its_place.py").write_text(
        "import os, sys\n"
        "open(os.environ['RANK'], 'w').write(' '.join([*sys.argv[1:], os.environ['WORLD_SIZE'], os.environ['OMP_NUM_THREADS'], os.environ.get('VELODROME_THREADS', 'of the user')]))\n"
        "sys.exit(5 if sys.argv[1] == 'fail' and os.environ['RANK'] == '1' else 0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # What affinity and quota leave of the machine, not all that it has.
    monkeypatch.setattr(launching, "usable_cores", lambda: 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    before = dict(os.environ)
    assert launch("writes_its_place", ["a", "b c"], processes=2) is None
    # 7 cores // 2 processes = 3 threads each, and the share is marked as none of the user's numbers
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["a b c 2 3 3"] * 2
    failed = launch("writes_its_place", ["fail"], processes=2)
    assert (failed.rank, failed.exit_code, failed.told) == (1, 5, None)
    assert dict(os.environ) == before
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch("writes_its_place", ["a"], processes=1) is None
    assert (tmp_path / "0").read_text() == "a 1 5 of the user"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
