"""Data sets by name, and where each comes from: a local folder, the system, a checked download, or the embedded subset."""

from velodrome.data.sources.csv_table import load_csv, prepare_csv_rows
from velodrome.data.sources.image_sets import load_fashion_mnist, load_mnist
from velodrome.data.sources.registry import fetch, known_names
from velodrome.data.sources.splits import Splits
from velodrome.data.sources.text import bigram_loss, load_text

__all__ = [
    "Splits",
    "bigram_loss",
    "fetch",
    "known_names",
    "load_csv",
    "load_fashion_mnist",
    "load_mnist",
    "load_text",
    "prepare_csv_rows",
]
