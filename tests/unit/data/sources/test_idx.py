import gzip
import re
import struct
import tracemalloc

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.data.sources.idx import read_idx, write_idx
from velodrome.errors import ArgumentError, DataError

IMAGES = numpy.arange(5 * 4 * 3, dtype=numpy.uint8).reshape(5, 4, 3)


def plain_bytes(array):
    """Return the file by hand: 0, 0, type 8, number of dimensions, sizes as big-endian, data."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(
    shape=st.one_of(st.tuples(st.integers(0, 9)), st.tuples(*[st.integers(0, 4)] * 3)),
    seed=st.integers(0, 99),
    is_plain=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_round_trip_gives_the_same_array(tmp_path_factory, shape, seed, is_plain):
    path = tmp_path_factory.mktemp("idx") / "file"
    array = numpy.random.default_rng(seed).integers(0, 256, shape, dtype=numpy.uint8)
    write_idx(path, array)
    if is_plain:
        path.write_bytes(gzip.decompress(path.read_bytes()))
        assert path.read_bytes() == plain_bytes(array)
    read = read_idx(path, num_dims=len(shape))
    assert read.shape == array.shape
    assert (read == array).all()


def test_write_idx_gives_the_same_bytes_under_every_name(tmp_path):
    write_idx(tmp_path / "a.gz", IMAGES)
    write_idx(tmp_path / "b.gz", IMAGES[:, :, ::-1][:, :, ::-1])  # the same array, not contiguous
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_write_idx_refuses_values_that_are_no_unsigned_bytes(tmp_path):
    with pytest.raises(ArgumentError, match="array has dtype int64.*uint8"):
        write_idx(tmp_path / "a.gz", numpy.array([256]))
    assert not (tmp_path / "a.gz").exists()


@pytest.mark.parametrize(
    ("content", "num_dims", "message"),
    [
        (b"", 3, "has 0 bytes, too few for an IDX header of 16"),
        (b"\x00\x00\x08\x03", 3, "has 4 bytes, too few"),
        (b"<html><body>not found</body></html>", 3, "begins with the magic number 0x3c68746d.*0x00000803"),
        (plain_bytes(IMAGES), 1, "0x00000803; .* with 1 dimension begins with 0x00000801"),
        (b"\x00\x00\x0d\x03" + plain_bytes(IMAGES)[4:], 3, "0x00000d03.* unsigned bytes with 3 dimensions"),
        (plain_bytes(IMAGES)[:-1], 3, r"holds 59 bytes of data; its header promises 5 x 4 x 3 = 60"),
        (plain_bytes(IMAGES) + b"\x00", 3, "holds more than 60 bytes of data"),
        (gzip.compress(b"", mtime=0), 3, "has 0 bytes, too few"),
        (gzip.compress(plain_bytes(IMAGES)[:-1], mtime=0), 3, "holds 59 bytes of data"),
        (gzip.compress(plain_bytes(IMAGES) + b"\x00", mtime=0), 3, "holds more than 60"),
        (gzip.compress(plain_bytes(IMAGES), mtime=0)[:-9], 3, "truncated or damaged"),
        (gzip.compress(plain_bytes(IMAGES), mtime=0) + b"trailing", 3, "truncated or damaged"),
        (b"\x1f\x8b", 3, "truncated or damaged"),
    ],
)
def test_read_idx_of_a_wrong_file_says_what_is_wrong_and_what_to_do(tmp_path, content, num_dims, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, num_dims=num_dims, remedy="Run: fetch it")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Run: fetch it")
    assert caught.value.path == path


def test_read_idx_of_a_missing_file_and_of_a_folder(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'no'} does not exist. Fetch the file again.")):
        read_idx(tmp_path / "no", num_dims=1)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} cannot be read: Is a directory. Fetch")):
        read_idx(tmp_path, num_dims=1)


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(60_000, 28, 28), (1 << 20, 32, 32), (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)])
def test_read_idx_with_a_header_that_claims_too_much_allocates_nothing(tmp_path, wrap, shape):
    path = tmp_path / "images"
    path.write_bytes(wrap(bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape) + bytes(100)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds 100 bytes|claims to hold"):
            read_idx(path, num_dims=3)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
@given(place=st.integers(0, 10_000), value=st.integers(1, 255), is_cut=st.booleans())
@settings(max_examples=150, deadline=None)
def test_read_idx_of_a_damaged_file_is_refused_or_right(tmp_path_factory, wrap, place, value, is_cut):
    content = bytearray(wrap(plain_bytes(IMAGES)))
    place %= len(content)
    if is_cut:
        del content[place:]
    else:
        content[place] ^= value
    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(content)
    read = problem = None
    try:
        read = read_idx(path, num_dims=3, remedy="Run: fetch it")
    except DataError as error:
        problem = str(error)
    if problem is not None:
        assert str(path) in problem
        assert problem.endswith("Run: fetch it")
    else:
        # A plain file has no checksum: a flip in its data or a permutation of its sizes cannot be seen. A gzip file has one.
        assert (wrap is bytes and not is_cut) or (read == IMAGES).all()
