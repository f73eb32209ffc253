import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.errors import ArgumentError
from velodrome.loop.durations import Duration, parse_duration

WHOLE_UNITS = ["epochs", "steps", "samples"]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("every epoch", 1, "epochs"),
        ("5 epochs", 5, "epochs"),
        ("every 100 steps", 100, "steps"),
        ("  Every 1_000 Steps ", 1000, "steps"),
        ("4,096 samples", 4096, "samples"),
        ("10 minutes", 600, "seconds"),
        ("1.5 h", 5400, "seconds"),
        ("90s", 90, "seconds"),
        ("0.25 seconds", 0.25, "seconds"),
        ("2 days", 172800, "seconds"),
        ("5 min", 300, "seconds"),
        ("30 secs", 30, "seconds"),
    ],
)
def test_duration_in_words(text, amount, unit):
    assert parse_duration(text) == Duration(amount, unit)


@given(amount=st.integers(1, 10**9), unit=st.sampled_from([*WHOLE_UNITS, "seconds"]), every=st.booleans())
@settings(max_examples=50)
def test_whole_durations_read_back_what_they_print(amount, unit, every):
    duration = Duration(amount, unit)
    assert parse_duration(f"{'every ' if every else ''}{duration}") == duration
    assert parse_duration(duration) == duration


@given(st.floats(min_value=0.001, max_value=1e6, allow_nan=False).map(lambda x: round(x, 3)))
@settings(max_examples=50)
def test_minutes_are_sixty_seconds(amount):
    assert parse_duration(f"{amount:.3f} minutes").amount == pytest.approx(60 * amount)


@given(st.text(max_size=20))
@settings(max_examples=200)
def test_any_text_is_a_positive_duration_or_an_argument_error(text):
    with contextlib.suppress(ArgumentError):
        assert parse_duration(text, name="every").amount > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"checkpoint='' is not a duration\. Write an amount and a unit, such as \"5 epochs\""),
        ("5", "is not a duration"),
        ("-5 steps", "is not a duration"),
        ("every", "has the unknown unit 'every'"),
        (5, "checkpoint=5 is not a duration"),
        (None, "checkpoint=None is not a duration"),
        ("5 stesp", r"has the unknown unit 'stesp'\. Did you mean \"steps\"\?"),
        ("0 steps", r"is 0 steps\. It must be positive and whole"),
        ("1.5 epochs", r"is 1\.5 epochs\. It must be positive and whole"),
        ("0 seconds", r"is 0 seconds\. It must be positive\.$"),
    ],
)
def test_what_is_no_duration_is_refused_by_its_name(text, message):
    with pytest.raises(ArgumentError, match=message):
        parse_duration(text, name="checkpoint")


@pytest.mark.parametrize(
    "duration",
    [Duration(0, "steps"), Duration(-1, "seconds"), Duration(1.5, "epochs"), Duration(float("nan"), "seconds")],
)
def test_duration_object_is_held_to_the_same_rules(duration):
    with pytest.raises(ArgumentError, match="It must be positive"):
        parse_duration(duration)
