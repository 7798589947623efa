"""Tells containers from other files."""

from __future__ import annotations

import os

_MAGIC = b"\x89LOOM\r\n\x1a"


def is_container(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file that begins as a container does."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC
