"""Code of the user's own, which a script imports as the recipe does."""

from __future__ import annotations

__all__ = ["import_as"]


def import_as(name: str, alias: str) -> tuple[str, str]:
    """Return the import of a "package.module:callable" under another name, and how it is then called.

    Under another name, because the script has names of its own.

    >>> import_as("shelf.nets:small", "make_model")
    ('from shelf.nets import small as make_model', 'make_model')
    """
    module, _, attribute = name.partition(":")
    root, *rest = attribute.split(".")
    return f"from {module} import {root} as {alias}", ".".join([alias, *rest])
