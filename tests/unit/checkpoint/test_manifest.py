import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velodrome.checkpoint.manifest import (
    MAX_MANIFEST_BYTES,
    FileRecord,
    Manifest,
    describe,
    parse_json,
    read_limited,
    read_manifest,
)
from velodrome.errors import CheckpointError

GOOD = Manifest(run_id="run-a", step=5, files={"model.safetensors": describe(b"abc")})

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", fullmatch=True)
records = st.builds(
    FileRecord,
    num_bytes=st.integers(0, 2**63 - 1),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
manifests = st.builds(
    Manifest,
    run_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    step=st.integers(0, 2**63 - 1),
    files=st.dictionaries(names, records, max_size=5),
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(GOOD.to_bytes()), **changes}).encode()


def test_describe_gives_the_known_hash_of_abc():
    # FIPS 180-2, appendix B.1
    assert describe(b"abc").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe(b"abc").num_bytes == 3


@given(manifests)
def test_parse_gives_back_what_was_written(manifest):
    assert Manifest.parse(manifest.to_bytes()) == manifest


@given(st.binary(max_size=200))
def test_parse_any_bytes_gives_a_typed_error(data):
    with pytest.raises(CheckpointError):
        Manifest.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["format", "run_id", "step", "files"]), json_values)
def test_parse_any_wrong_field_gives_a_typed_error_or_a_valid_manifest(field, value):
    try:
        manifest = Manifest.parse(changed(**{field: value}))
    except CheckpointError:
        return
    assert Manifest.parse(manifest.to_bytes()) == manifest


@given(st.data())
def test_parse_truncated_gives_a_typed_error(data):
    whole = GOOD.to_bytes().rstrip()
    with pytest.raises(CheckpointError):
        Manifest.parse(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(format=2), "format 2. This release reads format 1"),
        (changed(format=True), "format True"),
        (changed(extra=1), r"unknown \['extra'\]"),
        (b'{"format": 1}', r"lacks \['files', 'run_id', 'step'\]"),
        (b"[]", r"it is \[\], not an object"),
        (b'{"format": 1, "format": 1}', "a key appears twice"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b"\xff", "damaged: 'utf-8' codec"),
        (b"[" * 500_000, "nested more than 100 deep"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "1048577 bytes and at most 1048576"),
        (changed(run_id=""), "run_id is '', not a text of 1 to 200"),
        (changed(step=-1), "step is -1, not a whole number"),
        (changed(step=1.0), "step is 1.0, not a whole number"),
        (changed(files=[]), r"files is \[\], not an object"),
        (changed(files={"../model": {}}), "'../model' is not a plain name inside the folder"),
        (changed(files={"/etc/x": {}}), "not a plain name"),
        (changed(files={"a": 1}), "is 1, not an object"),
        (changed(files={"a": {"bytes": 1}}), r"lacks \['sha256'\]"),
        (changed(files={"a": {"bytes": -1, "sha256": "0" * 64}}), "bytes of a is -1"),
        (changed(files={"a": {"bytes": 1, "sha256": "Z" * 64}}), "not 64 hexadecimal digits"),
    ],
)
def test_parse_refuses_with_the_reason(data, message):
    with pytest.raises(CheckpointError, match=message):
        Manifest.parse(data)


def test_read_manifest_missing_names_the_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: No such file"):
        read_manifest(tmp_path)


def test_read_limited_too_large_is_refused_before_reading(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # sparse: four gigabytes that take no room
    with pytest.raises(CheckpointError, match=r"4294967296 bytes. At most 1048576"):
        read_limited(path, MAX_MANIFEST_BYTES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_read_limited_pipe_is_refused_instead_of_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"not a regular file"):
        read_limited(tmp_path / "pipe", 10)


def test_parse_json_nan_only_where_allowed():
    assert str(parse_json(b"NaN", origin="x", limit=10, allow_nan=True)) == "nan"
