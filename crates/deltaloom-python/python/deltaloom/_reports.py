"""What operations report, with the keys of the program's JSON as attributes."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

__all__ = [
    "ApplyReport",
    "DiffReport",
    "LineageReport",
    "LoadReport",
    "PackReport",
    "Report",
    "SearchReport",
    "UnpackReport",
    "VerifyReport",
]


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return Report(value)
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


class Report:
    """A report that cannot be changed. Objects in it are reports, too, and lists are tuples."""

    _title: ClassVar[str] = "report"
    _data: dict[str, Any]

    def __init__(self, data: dict[str, Any]) -> None:
        self.__dict__.update({key: _frozen(value) for key, value in data.items()})
        self.__dict__["_data"] = data

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the JSON of the library."""
        return cls(json.loads(text))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts and lists: the program's JSON."""
        copied: dict[str, Any] = json.loads(json.dumps(self._data))
        return copied

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self._data)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key] if key in self._data else self._data[key]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._data == other._data if isinstance(other, Report) else False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = (f"{key}={value!r}" for key, value in self._data.items() if not isinstance(value, dict | list))
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """The report for a notebook: its numbers, and a table of its tensors."""
        import html

        single = {key: value for key, value in self._data.items() if not isinstance(value, dict | list)}
        parts = [f"<b>deltaloom {html.escape(self._title)}</b>", _table([single], list(single))]
        tensors = self._data.get("tensors")
        if isinstance(tensors, list) and tensors and isinstance(tensors[0], dict):
            columns = [key for key, value in tensors[0].items() if not isinstance(value, dict)]
            parts.append(f"<details><summary>{len(tensors)} tensors</summary>{_table(tensors, columns)}</details>")
        return "".join(parts)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._data,)


def _table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    import html

    def cells(values: list[Any], kind: str) -> str:
        return "".join(f"<{kind}>{html.escape(_text(value))}</{kind}>" for value in values)

    body = "".join(f"<tr>{cells([row.get(column) for column in columns], 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(columns, 'th')}</tr>{body}</table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class PackReport(Report):
    """A container: sizes in bytes, and how each tensor is stored."""

    _title = "container"
    original_bytes: int
    packed_bytes: int
    ratio: float
    index_bytes: int
    seconds: float | None = None
    threads: int | None = None
    format_version: int
    needs_base: bool
    bases: tuple[Report, ...]
    files: tuple[str, ...]
    tensors: tuple[Report, ...]
    warnings: tuple[Report, ...] = ()


class UnpackReport(Report):
    """What was restored. In place: what of the file was written, and whether a run was resumed."""

    _title = "restored files"
    original_bytes: int
    packed_bytes: int
    files: int
    seconds: float
    threads: int
    warnings: tuple[Report, ...] = ()


class VerifyReport(Report):
    """Whether a container or a series is whole. `faults` has one line per fault."""

    _title = "verification"
    ok: bool
    faults: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.ok


class DiffReport(Report):
    """Two checkpoints compared: changed weights, distances in ULPs, relative L2."""

    _title = "difference"
    identical: bool
    total: Report
    tensors: tuple[Report, ...]


class LineageReport(Report):
    """How each tensor was made from those of other checkpoints."""

    _title = "lineage"
    ancestors: tuple[str, ...]
    findings: tuple[Report, ...]
    tensors: tuple[Report, ...]


class SearchReport(Report):
    """Candidates for a base, the best first. `chosen` is the best if it is good enough."""

    _title = "base search"
    chosen: str | None
    candidates: tuple[Report, ...]


class LoadReport(Report):
    """What was loaded into a model: `missing` names have no tensor in the file, `unexpected` ones no place."""

    _title = "loaded weights"
    tensors: int
    bytes: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class ApplyReport(Report):
    """What was changed in memory."""

    _title = "applied weights"
    tensors: int
    changed_tensors: int
    changed_elements: int
    staged_bytes: int
    bytes: int
