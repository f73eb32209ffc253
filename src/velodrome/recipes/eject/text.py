"""A text as windows of characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.recipes.eject.code import Part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["text_part"]

_CUT = '''\
def cut_windows(ids: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return windows (N, WINDOW), and for each the characters that follow its own."""
    inputs = ids[:-1].unfold(0, WINDOW, stride).contiguous()
    return inputs, ids[1:].unfold(0, WINDOW, stride).contiguous()
'''
_LOAD = '''\
def load_data(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return windows and next characters for training, and both for validation."""
    with {open} as file:
        text = file.read().decode("utf-8-sig").replace("\\r\\n", "\\n")
    cut = int(len(text) * TRAIN_FRACTION)
    characters = sorted(set({known}))
    number = {{character: index for index, character in enumerate(characters)}}
    ids = torch.tensor([number[character] for character in text])
    train_x, train_y = cut_windows(ids[:cut], {stride})
    val_x, val_y = cut_windows(ids[cut:], WINDOW)
    return train_x, train_y, val_x, val_y
'''


def text_part(arguments: Mapping[str, Any], file: Path) -> Part:
    """Return the functions that read the text and cut it."""
    import inspect

    from velodrome.recipes.named_data import text

    values = {each.name: each.default for each in inspect.signature(text).parameters.values()} | dict(arguments)
    is_zipped = not values["path"]  # what comes along is; a text of the user's is read as it is
    stride = values["stride"]
    constants = [
        f"WINDOW = {values['window']}  # characters a sample",
        f"TRAIN_FRACTION = {values['train_fraction']!r}  # the first part trains, the rest validates",
    ]
    if stride is not None:
        constants.append(f"STRIDE = {stride}  # characters from one training window to the next")
    load = _LOAD.format(
        open="gzip.open(path)" if is_zipped else 'path.open("rb")',
        known="text[:cut]" if values["vocabulary"] == "train" else "text",
        stride="WINDOW" if stride is None else "STRIDE",
    )
    return Part(imports=("import gzip",) if is_zipped else (), constants=tuple(constants), definitions=(_CUT, load))
