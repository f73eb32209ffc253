"""Make the embedded text, Jane Austen's Persuasion, from the R package janeaustenr; the same file on every run.

    python scripts/make_embedded_text.py FOLDER/janeaustenr/data

The folder is that of an installed package, such as Debian's r-cran-janeaustenr: /usr/lib/R/site-library/janeaustenr/data.
It holds the lines of six novels in R's own format, which the few functions below read.
"""

from __future__ import annotations

import gzip
import struct
import sys
import zlib
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src" / "velodrome" / "data" / "embedded" / "text" / "persuasion.txt.gz"
NOVEL = "persuasion"
STRINGS, STRING, INTEGERS = 16, 9, 13  # types of R objects, in the lowest byte of their flags


def main(folder: Path) -> None:
    """Write the gzipped text, one line of the novel a line."""
    offset, size = find(gzip.decompress((folder / "Rdata.rdx").read_bytes()), NOVEL)
    with (folder / "Rdata.rdb").open("rb") as file:
        file.seek(offset)
        packed = file.read(size)
    text = "\n".join(read_strings(zlib.decompress(packed[4:])[23:])) + "\n"  # after the length; after R's header
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))


def find(index: bytes, name: str) -> tuple[int, int]:
    """Return where an object lies: the index lists (offset, size) of each object, and then their names in that order."""
    places, position = [], 0
    while (position := index.find(struct.pack(">ii", INTEGERS, 2), position)) >= 0:
        places.append(struct.unpack_from(">ii", index, position + 8))
        position += 16
    start = index.find(struct.pack(">ii", STRINGS, len(places)))
    return places[read_strings(index[start:]).index(name)]


def read_strings(data: bytes) -> list[str]:
    """Return a vector of strings: its type, how many they are, and for each its type, length and bytes."""
    kind, num = struct.unpack_from(">ii", data)
    assert kind & 255 == STRINGS
    found, position = [], 8
    for _ in range(num):
        kind, length = struct.unpack_from(">ii", data, position)
        assert kind & 255 == STRING
        position += 8 + length
        found.append(data[position - length : position].decode("utf-8"))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
