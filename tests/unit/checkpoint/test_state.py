import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velodrome.checkpoint.manifest import parse_json
from velodrome.checkpoint.state import encode_state
from velodrome.errors import CheckpointError


def decode(data: bytes) -> object:
    return parse_json(data, origin="state.json", limit=1 << 20, allow_nan=True)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_state_comes_back_equal(state):
    assert decode(encode_state(state)) == state


def test_state_nan_and_infinity_come_back():
    state = decode(encode_state({"best": -math.inf, "last": math.nan, "position": (1, 2)}))
    assert state["best"] == -math.inf
    assert math.isnan(state["last"])
    assert state["position"] == [1, 2]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {1: 2}}, r"state\['a'\] has the key 1"),
        ({"a": [object()]}, r"state\['a'\]\[0\] is a object"),
        ({"a": b"x"}, r"state\['a'\] is a bytes"),
    ],
)
def test_state_that_json_would_change_is_refused(state, message):
    with pytest.raises(CheckpointError, match=message):
        encode_state(state)


def test_state_nested_in_itself_is_refused():
    state: dict[str, object] = {}
    state["a"] = state
    with pytest.raises(CheckpointError, match="nested more than 50 deep"):
        encode_state(state)
