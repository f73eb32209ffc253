"""Make the embedded FashionMNIST subset: 8,000 + 2,000 of the real images, drawn with seed 0; the same files on every run.

python scripts/make_embedded.py FOLDER_WITH_THE_FOUR_IDX_FILES
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy

from velodrome.data.sources.idx import read_idx, write_idx

TARGET = Path(__file__).parent.parent / "src" / "velodrome" / "data" / "embedded" / "fashion-mnist"
SIZES = {"train": 8000, "t10k": 2000}


def main(folder: Path) -> None:
    """Write the four files."""
    TARGET.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.Generator(numpy.random.PCG64(0))
    for split, size in SIZES.items():
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz", num_dims=3)
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz", num_dims=1)
        picked = generator.permutation(len(labels))[:size]
        write_idx(TARGET / f"{split}-images-idx3-ubyte.gz", images[picked])
        write_idx(TARGET / f"{split}-labels-idx1-ubyte.gz", labels[picked])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
