import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from velodrome.record.run_name import make_run_name, make_slug


@given(st.text())
@example("../../x")
@example("/etc/passwd")
@example("a/b\\c")
@example("CON")
@example("con.txt")
@example("-rf")
@example("x:y")
@example("🚲" * 300)
@example("ß" * 255)
@example("K")  # the Kelvin sign, which becomes a plain k
@example("\x00")
@example(".")
def test_run_name_of_any_label_stays_inside_the_root_and_is_safe_everywhere(tmp_path_factory, label):
    root = tmp_path_factory.getbasetemp().resolve()
    name = make_run_name(label)
    assert (root / name).resolve().parent == root
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-_")
    assert name[0] not in "-_"
    assert len(name) <= 90  # 64 for the slug ("run-" and 60), 16 for the time, 7 for the random end
    assert re.fullmatch(r"[a-z0-9_-]+-\d{8}-\d{6}-[0-9a-f]{6}", name)


@pytest.mark.parametrize(
    ("label", "slug"),
    [
        ("fashion-mnist-mlp", "fashion-mnist-mlp"),
        ("My Run #3", "my-run-3"),
        ("../../x", "x"),
        ("a/b", "a-b"),
        ("CON", "run-con"),
        ("lpt1", "run-lpt1"),
        ("---", "run"),
        ("日本", "run"),
        ("a" * 300, "a" * 60),
    ],
)
def test_slug_of_label(label, slug):
    assert make_slug(label) == slug


def test_run_names_of_one_moment_differ():
    assert len({make_run_name("x") for _ in range(50)}) == 50
