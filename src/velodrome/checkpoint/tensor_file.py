"""The writing half of the safetensors format: a header in JSON, then the tensors' bytes, straight from where they lie.

The library reads; it does not write here. `safetensors.torch.save` returns one `bytes` object, and holds Python's global lock
while it fills it: 50 to 60 ms for 100 MB on two cores (benchmarks/saving.py has the loop's side of it), in which a save in the background would stop
the training loop; it needs memory for two copies, too. `save_file` does neither, but keeps the file to itself: what was written
could be hashed only by reading it again, and not be made to fail by a test. The bytes are those of the library, which
`tests/unit/checkpoint/test_tensor_file.py` compares.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

__all__ = ["TensorFile", "gather"]

_JOINED_BYTES = 1 << 20  # small tensors are handed on together: one system call for a thousand biases

# In the order of the library, which puts wide types first so that every tensor lies aligned.
_CODES = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32", "int32": "I32",
    "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_RANKS = {name: rank for rank, name in enumerate(_CODES)}


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """The content of one safetensors file, not yet brought together.

    Args:
        tensors: each once, by name, in the order of the file.
        aliases: further names of tensors that have several (tied weights), with the name that it is written under.
    """

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensors, without the header."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes of the file, piece by piece.

        Raises:
            CheckpointError: a tensor has no plain bytes.
        Cost: one wait for the device per tensor that is not on the CPU, and host memory for one such tensor at a time; nothing
            is copied of those that are there already, so they must not change meanwhile.
        """
        joined = bytearray(self._header())
        for name, tensor in self.tensors.items():
            data = _bytes_of(name, tensor)
            if len(joined) + len(data) > _JOINED_BYTES:
                if joined:
                    yield memoryview(joined)
                joined = bytearray()
            if len(data) > _JOINED_BYTES:
                yield data
            else:
                joined += data
        if joined:
            yield memoryview(joined)

    def _header(self) -> bytes:
        metadata = {"format": "pt"}
        if self.aliases:
            metadata["aliases"] = json.dumps(self.aliases, sort_keys=True)
        # Sorted, unlike the library's, whose order is another in each process: equal runs write equal files.
        header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
        start = 0
        for name, tensor in self.tensors.items():
            end = start + tensor.numel() * tensor.element_size()
            code = _CODES[str(tensor.dtype).removeprefix("torch.")]
            header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def gather(tensors: Mapping[str, Tensor]) -> TensorFile:
    """Return the content of a safetensors file that holds these tensors; nothing is copied or waited for yet.

    Two names of one tensor (tied weights) are written once, and the file says which name stands for which.
    Tensors that merely overlap are written as copies; non-contiguous ones are made contiguous.

    Raises:
        CheckpointError: a tensor has no dense data to save, or is of a type that the format does not know.
    """
    from torch import Tensor

    plain: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    name_by_view: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise _unsavable(name, f"a {type(tensor).__name__}")
        if tensor.is_meta or str(tensor.layout) != "torch.strided":
            raise _unsavable(name, f"{tensor.layout} on {tensor.device}")
        if str(tensor.dtype).removeprefix("torch.") not in _CODES or name == "__metadata__":
            raise CheckpointError(
                f"The tensor {name!r} of type {tensor.dtype} cannot be written as safetensors. Dense tensors of torch's ordinary "
                f"types can. Convert it before saving.",
                name=name,
            )
        view = _identify(tensor)
        if tensor.numel() and view in name_by_view:
            aliases[name] = name_by_view[view]
            continue
        name_by_view[view] = name
        plain[name] = tensor.detach()
    order = sorted(plain, key=lambda name: (_RANKS[str(plain[name].dtype).removeprefix("torch.")], name))
    return TensorFile(tensors={name: plain[name] for name in order}, aliases=aliases)


def _bytes_of(name: str, tensor: Tensor) -> memoryview:
    import torch

    try:
        host = tensor.resolve_conj().resolve_neg().cpu().contiguous()  # SYNC: the bytes are needed now
        return memoryview(host.reshape(-1).view(torch.uint8).numpy().data)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise _unsavable(name, f"a {type(tensor).__name__} without plain bytes ({error})") from error


def _identify(tensor: Tensor) -> tuple[object, ...]:
    """Return what two names of one and the same tensor have in common."""
    return (
        tensor.device,
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _unsavable(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The tensor {name!r} is {what}. Only dense tensors that hold data can be saved. "
        f"Materialise it, or leave it out of the state.",
        name=name,
    )
