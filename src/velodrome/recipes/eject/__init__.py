"""From a recipe to the plain PyTorch script that trains the same thing: `velodrome eject`.

One file a part: each gives the lines that this recipe needs, and nothing for what it leaves off. `script.py` puts them together.
"""

from velodrome.recipes.eject.script import eject

__all__ = ["eject"]
