"""What `tune` shows when it does not end well."""

from __future__ import annotations

import json
import os
import signal

import pytest
import typer

from velodrome.advise.tuning.facts import Round
from velodrome.advise.tuning.result import Tuning
from velodrome.cli.end_signals import ended_in_order
from velodrome.cli.screen import Screen
from velodrome.cli.tune_end import show_what_is_known
from velodrome.errors import VelodromeError

ROUND = Round(step_s=0.01, turn_s=0.0, evaluation_s=0.0, memory_bytes=None)


def test_what_is_known_is_shown_before_the_error(capsys):
    show_what_is_known(Tuning(recipe="mine", budget_s=60, baseline=(ROUND,)), VelodromeError("planted"), Screen())
    assert "Noise floor" in capsys.readouterr().out


def test_nothing_is_shown_where_nothing_is_known(capsys):
    show_what_is_known(Tuning(recipe="mine", budget_s=60), VelodromeError("planted"), Screen())
    assert capsys.readouterr().out == ""


def test_json_is_one_object_with_the_error_in_it(capsys):
    with pytest.raises(typer.Exit) as left:
        show_what_is_known(
            Tuning(recipe="mine", budget_s=60, baseline=(ROUND,)), VelodromeError("planted"), Screen(as_json=True)
        )
    assert left.value.exit_code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == {"type": "VelodromeError", "message": "planted", "exit_code": 1}
    assert found["baseline"][0]["step_s"] == 0.01


def test_handlers_are_put_back_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ended_in_order() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.exit_code == 130
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), ended_in_order() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
