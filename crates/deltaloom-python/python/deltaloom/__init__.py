"""Exact differences between neural-network weights: checkpoints, fine-tunes and training runs.

`deltaloom.numpy` and `deltaloom.torch` save and load tensors, `safe_open` reads some of them,
`pack` and `unpack` work on files and folders, and `Series` keeps every step of a training run.
Importing this package imports neither numpy nor torch.
"""

from __future__ import annotations

from deltaloom import _lib
from deltaloom._errors import (
    BaseMismatchError,
    CorruptError,
    DeltaloomError,
    ExistsError,
    InPlaceError,
    NotASeriesError,
    OutOfOrderError,
    SeriesError,
    StepNotFoundError,
    StepTakenError,
    TensorNotFoundError,
    VersionError,
)
from deltaloom._inputs import Base
from deltaloom._open import Container, LoomSlice, TensorInfo, safe_open
from deltaloom._operations import diff, find_base, inspect, lineage, pack, unpack, verify
from deltaloom._program import main
from deltaloom._progress import Progress
from deltaloom._reports import (
    ApplyReport,
    DiffReport,
    LineageReport,
    LoadReport,
    PackReport,
    Report,
    SearchReport,
    UnpackReport,
    VerifyReport,
)
from deltaloom._series import AsyncSaver, Series, Step

__version__: str = _lib.version()

__all__ = [
    "ApplyReport",
    "AsyncSaver",
    "Base",
    "BaseMismatchError",
    "Container",
    "CorruptError",
    "DeltaloomError",
    "DiffReport",
    "ExistsError",
    "InPlaceError",
    "LineageReport",
    "LoadReport",
    "LoomSlice",
    "NotASeriesError",
    "OutOfOrderError",
    "PackReport",
    "Progress",
    "Report",
    "SearchReport",
    "Series",
    "SeriesError",
    "Step",
    "StepNotFoundError",
    "StepTakenError",
    "TensorInfo",
    "TensorNotFoundError",
    "UnpackReport",
    "VerifyReport",
    "VersionError",
    "__version__",
    "diff",
    "find_base",
    "inspect",
    "lineage",
    "main",
    "pack",
    "safe_open",
    "unpack",
    "verify",
]
