"""What can go wrong. Each exception is also the built-in one that callers catch."""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "BaseMismatchError",
    "CorruptError",
    "DeltaloomError",
    "ExistsError",
    "InPlaceError",
    "NotASeriesError",
    "OutOfOrderError",
    "SeriesError",
    "StepNotFoundError",
    "StepTakenError",
    "TensorNotFoundError",
    "VersionError",
]


class DeltaloomError(Exception):
    """Anything that deltaloom refuses or cannot do.

    Attributes:
        hint: What to do about it, or None.
        path: The file that it is about, or None.
        detail: What is wrong, without the name of the file.
        tensor: The tensor that it is about, or None.
    """

    hint: str | None = None
    path: str | None = None
    detail: str = ""
    tensor: str | None = None

    def __str__(self) -> str:
        # KeyError would show the repr of its argument.
        return str(self.args[0]) if self.args else ""


class CorruptError(DeltaloomError, ValueError):
    """Bytes that break their format, end too early, or do not match their digest."""


class BaseMismatchError(DeltaloomError, ValueError):
    """The bases at hand are not those that a container needs.

    Attributes:
        expected: BLAKE3 of the tensor that is needed, in hexadecimal.
        found: What the bases have instead.
    """

    expected: str | None = None
    found: str | None = None


class VersionError(DeltaloomError, ValueError):
    """A file of a version that this library does not know."""


class TensorNotFoundError(DeltaloomError, KeyError):
    """A tensor that does not exist."""


class StepNotFoundError(DeltaloomError, KeyError):
    """A step of a series, or a part of one, that does not exist."""


class ExistsError(DeltaloomError, FileExistsError):
    """A target that exists, or must not be replaced."""


class InPlaceError(DeltaloomError, RuntimeError):
    """A file that cannot be changed in place, or whose change did not finish.

    Attributes:
        unfinished: Whether the file is changed in part. The same call finishes it.
    """

    unfinished: bool = False


class SeriesError(DeltaloomError, ValueError):
    """A series that refuses a step."""


class StepTakenError(SeriesError):
    """The series has this step already, with other content."""


class OutOfOrderError(SeriesError):
    """A step before the newest one."""


class NotASeriesError(SeriesError):
    """A place without a series."""


_CLASSES: dict[str, type[DeltaloomError]] = {
    kind.__name__: kind
    for kind in (
        DeltaloomError,
        CorruptError,
        BaseMismatchError,
        VersionError,
        TensorNotFoundError,
        StepNotFoundError,
        ExistsError,
        InPlaceError,
        SeriesError,
        StepTakenError,
        OutOfOrderError,
        NotASeriesError,
    )
}


def error_of(kind: str, fields: dict[str, Any]) -> BaseException:
    """Makes the exception for an error of the library. The extension module calls it."""
    path = fields.get("path")
    path = None if path is None else os.fsdecode(path)
    error: BaseException
    if kind == "OSError":
        number = fields["errno"]
        error = OSError(number, fields["detail"].removesuffix(f" (os error {number})"), path)
    elif kind == "FileNotFoundError":
        error = FileNotFoundError(2, fields["message"], path)
    elif kind == "ValueError":
        error = ValueError(fields["message"])
    else:
        ours = _CLASSES[kind](fields["message"])
        ours.hint, ours.path, ours.detail = fields.get("hint"), path, fields["detail"]
        for name in ("tensor", "expected", "found", "unfinished"):
            if fields.get(name) is not None and hasattr(ours, name):
                setattr(ours, name, fields[name])
        error = ours
    if fields.get("hint"):
        error.add_note(f"hint: {fields['hint']}")
    return error
