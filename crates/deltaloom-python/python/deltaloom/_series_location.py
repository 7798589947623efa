"""Where a series is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Series


def open_or_create(series: Series | str | os.PathLike[str]) -> Series:
    """Opens a series by its folder or URL, or creates it if there is none."""
    from . import NotASeriesError, Series

    if isinstance(series, Series):
        return series
    location = os.fspath(series)
    try:
        return Series.open(location)
    except (FileNotFoundError, NotASeriesError):
        return Series.init(location)


def waiting_folder(output: str | os.PathLike[str], series: Series) -> Path:
    """Where checkpoints in ``output`` wait for a series: beside them, so that links can be made.

    Its name has that of the series, so that nothing gets into another one.
    """
    location = str(series.location)
    place = location if "://" in location else os.path.abspath(location)
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return Path(output, f".deltaloom-waiting-{name}")
