"""The IDX format of the MNIST family, read strictly: magic, dimensions and length must agree.

Source: Yann LeCun, "The MNIST database of handwritten digits", 1998, section FILE FORMATS.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import IO, TYPE_CHECKING, cast

import numpy

from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_idx", "write_idx"]

_UNSIGNED_BYTE = 0x08
_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 1 << 30  # the largest of the family (EMNIST by class) has 0.55 GB


def read_idx(path: Path, *, num_dims: int, remedy: str = "Fetch the file again.") -> numpy.ndarray:
    """Return the unsigned bytes of an IDX file, plain or gzipped.

    Args:
        path: the file.
        num_dims: 1 for labels, 3 for images.
        remedy: the last sentence of every error.
    Raises:
        DataError: missing or unreadable, damaged gzip, wrong magic, or a length that is not what the header says.
    Cost: memory grows with what the file holds, not with what its header promises.
    """
    try:
        with open(path, "rb") as plain:
            is_gzip = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if is_gzip else plain
            header = stream.read(4 + 4 * num_dims)
            shape = _parse_header(header, num_dims, path, remedy)
            expected = math.prod(shape)
            content = _read_at_most(stream, expected + 1)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. {remedy}", path=path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: it is truncated or damaged ({error}). {remedy}", path=path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {remedy}", path=path) from error
    if len(content) != expected:
        found = f"{len(content):,}" if len(content) < expected else f"more than {expected:,}"
        dims = " x ".join(map(str, shape))
        raise DataError(
            f"{path} holds {found} bytes of data; its header promises {dims} = {expected:,}. {remedy}", path=path
        )
    return numpy.frombuffer(content, dtype=numpy.uint8).reshape(shape)


def write_idx(path: Path, array: numpy.ndarray) -> None:
    """Write unsigned bytes as a gzipped IDX file: the same array gives the same file on every day.

    Raises:
        ArgumentError: another dtype, whose values may not fit into a byte.
    """
    if array.dtype != numpy.uint8:
        raise ArgumentError(
            f"array has dtype {array.dtype}. An IDX file of unsigned bytes takes uint8: convert it first."
        )
    header = struct.pack(">HBB", 0, _UNSIGNED_BYTE, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as file:
        file.write(header + array.tobytes())


def _read_at_most(stream: IO[bytes], num_bytes: int) -> bytearray:
    """Read in pieces: one read of all that a header promises would set that memory aside, however short the file is."""
    content = bytearray()
    while piece := stream.read(min(_CHUNK_BYTES, num_bytes - len(content))):
        content += piece
    return content


def _parse_header(header: bytes, num_dims: int, path: Path, remedy: str) -> tuple[int, ...]:
    if len(header) < 4 + 4 * num_dims:
        raise DataError(
            f"{path} has {len(header)} bytes, too few for an IDX header of {4 + 4 * num_dims}. {remedy}", path=path
        )
    magic = int.from_bytes(header[:4], "big")
    expected_magic = (_UNSIGNED_BYTE << 8) | num_dims
    if magic != expected_magic:
        raise DataError(
            f"{path} begins with the magic number {magic:#010x}; an IDX file of unsigned bytes with {num_dims} "
            f"dimension{'s' if num_dims > 1 else ''} begins with {expected_magic:#010x}. {remedy}",
            path=path,
        )
    shape = struct.unpack(f">{num_dims}I", header[4:])
    if math.prod(shape) > _MAX_BYTES:
        raise DataError(
            f"{path} claims to hold {' x '.join(map(str, shape))} bytes, more than {_MAX_BYTES:,}. {remedy}", path=path
        )
    return shape
