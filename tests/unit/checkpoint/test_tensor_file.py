import json

import pytest
import torch
from safetensors.torch import _TYPES, save

from velodrome.checkpoint.snapshot import Snapshot
from velodrome.checkpoint.store import Content
from velodrome.checkpoint.tensor_file import gather
from velodrome.checkpoint.tensors import decode_tensors, encode_tensors
from velodrome.errors import CheckpointError


def test_bytes_are_those_of_the_library_for_every_type_of_the_format():
    tensors = {
        f"of {name}": torch.arange(16, dtype=torch.uint8).view(dtype)
        for name, dtype in _TYPES.items()
        if name != "BOOL"
    }
    tensors |= {
        "of BOOL": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "größe/ß": torch.ones(5, dtype=torch.int16),
        "large": torch.randn(600_000, generator=torch.Generator().manual_seed(0)),  # 2.4 MB: a piece of its own
    }
    assert encode_tensors(tensors) == save(tensors, metadata={"format": "pt"})


def test_small_tensors_are_handed_on_together_and_large_ones_are_not_copied():
    large = torch.ones(1 << 19)  # 2 MiB
    chunks = list(gather({"a": torch.ones(2), "b": torch.ones(3), "c": large, "d": torch.ones(1)}).chunks())
    assert [len(chunk) for chunk in chunks][1:] == [2 << 20, 4]
    large[0] = 7.0
    assert torch.frombuffer(chunks[1], dtype=torch.float32)[0] == 7.0


def test_tied_tensors_are_gathered_once_and_named_in_the_header():
    weight = torch.ones(4)
    file = gather({"a": weight, "b": weight})
    assert (list(file.tensors), file.aliases, file.num_bytes) == (["a"], {"b": "a"}, 16)
    data = b"".join(file.chunks())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["aliases"]) == {"b": "a"}


def test_name_that_the_format_keeps_for_itself_is_refused():
    with pytest.raises(CheckpointError, match="'__metadata__' of type torch.float32 cannot be written"):
        gather({"__metadata__": torch.ones(1)})


def test_snapshot_keeps_its_values_and_its_memory(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    snapshot = Snapshot()

    def take() -> torch.Tensor:
        file = gather({"w": weight.T, "tied": weight.T})
        copied, wait = snapshot.take(Content(step=1, files={"model.safetensors": file}, state=b""))
        wait()
        assert copied.files["model.safetensors"].aliases == {"tied": "w"}
        return copied.files["model.safetensors"].tensors["w"]

    first = take()
    weight += 10.0
    assert first.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    second = take()
    assert second.tolist() == [[10.0, 13.0], [11.0, 14.0], [12.0, 15.0]]
    assert second.data_ptr() == first.data_ptr()
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_tensors({"w": second}))
    assert torch.equal(decode_tensors(path)["w"], weight.T)
