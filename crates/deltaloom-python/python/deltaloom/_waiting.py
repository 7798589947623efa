"""Checkpoints that wait for a series in a folder beside them, so that packing delays no training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deltaloom import _lib
from deltaloom._errors import NotASeriesError
from deltaloom._files import Preset
from deltaloom._inputs import texts_of
from deltaloom._series import Series

__all__ = ["drain", "open_or_create", "snapshot", "waiting_folder"]


def open_or_create(series: Series | str | os.PathLike[str]) -> Series:
    """Opens a series by its folder or URL, or creates it if there is none."""
    if isinstance(series, Series):
        return series
    location = os.fspath(series)
    try:
        return Series.open(location)
    except (FileNotFoundError, NotASeriesError):
        return Series.init(location)


def waiting_folder(output: str | os.PathLike[str], series: Series) -> Path:
    """Where checkpoints in `output` wait for a series: beside them, so that links can be made.

    Its name has that of the series, so that nothing gets into another one.
    """
    location = series.location
    place = location if "://" in location else os.path.abspath(location)
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return Path(output, f".deltaloom-waiting-{name}")


def snapshot(
    waiting: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    step: int,
    meta: Mapping[str, Any] | None = None,
    exclude: Iterable[str] = (),
) -> None:
    """Makes a checkpoint wait, without looking at any series.

    Its files are linked, so the originals may be deleted, but nobody may write to them any more.
    They are copied where the file system has no links.

    Args:
        waiting: The folder, which need not exist.
        checkpoint: A folder or a file.
        step: Its number.
        meta: Texts and numbers that are stored with it.
        exclude: Patterns of files to leave out.

    Raises:
        OSError: A file cannot be read or written.
        CorruptError: The checkpoint is damaged.
    """
    _lib.snapshot(os.fspath(waiting), os.fspath(checkpoint), step, texts_of(meta), list(exclude))


def drain(
    series: Series, waiting: str | os.PathLike[str], *, preset: Preset = "default", threads: int = 0
) -> list[int]:
    """Adds all checkpoints that wait, in order, and removes each when the series has it.

    If a step does not follow the newest one, the later ones become a branch. Only one process does
    this at a time; others wait for it.

    Returns:
        The steps that were added.

    Raises:
        Exception: What `Series.add` raises for the first that fails. It and those after it wait on.
    """
    return _lib.drain(series._handle, os.fspath(waiting), preset, threads)
