import json
import subprocess
import sys

import pytest
import torch

from support.programs import environment
from velodrome.checkpoint.tensors import decode_tensors, encode_tensors
from velodrome.errors import CheckpointError


def round_trip(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_tensors(tensors))
    return decode_tensors(path)


def with_header(path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
)
def test_encode_then_decode_gives_the_same_bits(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert torch.equal(round_trip(tmp_path, {"a": tensor})["a"], tensor)
    assert round_trip(tmp_path, {"a": tensor})["a"].dtype == dtype


def test_encode_scalar_empty_and_non_contiguous_tensors(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "turned": base.T,
        "column": base[:, 1],
    }
    back = round_trip(tmp_path, tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_encode_tied_weights_are_written_once_and_tied_again(tmp_path):
    weight = torch.ones(1000)
    data = encode_tensors({"embed.weight": weight, "head.weight": weight})
    assert 4000 < len(data) < 4400  # 1000 x 4 bytes once, and a header
    back = round_trip(tmp_path, {"embed.weight": weight, "head.weight": weight})
    assert back["embed.weight"].data_ptr() == back["head.weight"].data_ptr()


def test_encode_overlapping_views_are_written_as_copies(tmp_path):
    base = torch.arange(4.0)
    back = round_trip(tmp_path, {"all": base, "front": base[:2], "mirror": base.reshape(2, 2)})
    assert back["front"].tolist() == [0.0, 1.0]
    assert back["mirror"].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_encode_conjugate_view_is_resolved(tmp_path):
    assert round_trip(tmp_path, {"a": torch.tensor([1 + 2j]).conj()})["a"].tolist() == [1 - 2j]


@pytest.mark.slow
def test_encode_same_tensors_same_bytes_in_every_process(tmp_path):
    program = (
        "import torch, hashlib; from velodrome.checkpoint.tensors import encode_tensors as e;"
        "w = torch.ones(3);"
        "print(hashlib.sha256(e({'a': w, 'b': w, 'c': torch.zeros(2)})).hexdigest())"
    )
    run = [sys.executable, "-c", program]
    digests = {subprocess.run(run, capture_output=True, check=True, env=environment()).stdout for _ in range(3)}
    assert len(digests) == 1


def test_encode_tensor_without_data_is_refused():
    with pytest.raises(CheckpointError, match=r"'a' is torch\.strided on meta"):
        encode_tensors({"a": torch.empty(2, device="meta")})
    with pytest.raises(CheckpointError, match=r"'a' is torch\.sparse_coo"):
        encode_tensors({"a": torch.eye(2).to_sparse()})


def test_encode_unknown_type_is_refused():
    with pytest.raises(CheckpointError, match=r"cannot be written as safetensors"):
        encode_tensors({"a": torch.zeros(2, dtype=torch.complex128)})


@pytest.mark.parametrize("start", [b"", b"abc", (1 << 40).to_bytes(8, "little"), (200_000_000).to_bytes(8, "little")])
def test_decode_absurd_header_is_refused_before_parsing(tmp_path, start):
    path = tmp_path / "x.safetensors"
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match=r"not a safetensors file.*At most 100000000"):
        decode_tensors(path)


def test_decode_missing_file_names_the_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read: No such file"):
        decode_tensors(tmp_path / "none.safetensors")


def test_decode_bad_header_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with_header(path, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 999]}})
    with pytest.raises(CheckpointError, match=r"cannot be read as safetensors"):
        decode_tensors(path)


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ("[]", "not a table"),
        ('{"b": "none"}', "ties 'b' to 'none'"),
        ('{"a": "a"}', "ties 'a' to 'a'"),
        ('{"b": 3}', "ties 'b' to 3"),
        ("{", "damaged"),
    ],
)
def test_decode_impossible_ties_are_refused(tmp_path, aliases, message):
    path = tmp_path / "x.safetensors"
    header = {
        "__metadata__": {"aliases": aliases},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    with_header(path, header, b"\0" * 4)
    with pytest.raises(CheckpointError, match=message):
        decode_tensors(path)


def test_encode_what_is_no_tensor_is_refused():
    with pytest.raises(CheckpointError, match="'_extra_state' is a dict. Only dense tensors"):
        encode_tensors({"_extra_state": {"scale": 1.0}})
