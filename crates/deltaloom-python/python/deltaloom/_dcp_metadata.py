"""The metadata of a distributed checkpoint as JSON, `deltaloom-dcp.json`.

It says where each part of each tensor is, and holds all values that are no tensors. It takes the
place of torch's `.metadata`, which is a pickle.

What it says is checked before anything is read by it: shapes, bounds, names of files, and that the
parts of a tensor have as many elements as the tensor.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from deltaloom._hub import SCHEME, resolve
from deltaloom._values import Json, decode, encode, loads

FORMAT = "deltaloom dcp"
VERSION = 1
MAX_BYTES = 256 << 20
"""How large the file may be."""
MAX_BASES = 256
"""How many checkpoints may stand on each other."""
_MAX_PLACE = 1 << 20


@dataclass(frozen=True)
class Part:
    """Where one part of a tensor is."""

    file: str
    """Name of the container in the checkpoint's folder."""
    name: str
    """Name of the tensor in it."""


@dataclass(frozen=True)
class Value:
    """A value that is no tensor."""

    encoded: Json

    def as_torch_save(self, fqn: str) -> io.BytesIO:
        """The bytes that a planner expects: `torch.save` of the value. They are made here; none of
        them were read from a file."""
        stream = io.BytesIO()
        torch.save(decode(self.encoded, where=fqn), stream)
        stream.seek(0)
        return stream


@dataclass(frozen=True)
class Description:
    """What the file says."""

    metadata: Metadata
    """For the planner. Its `storage_data` maps each `MetadataIndex` to a part or a value."""
    files: list[str]
    """Names of the containers."""
    bases: list[str]
    """What they were packed against: paths relative to the folder, or names of models."""


def file_name(rank: int | None) -> str:
    """Name of the file: one for all ranks, or that of one rank if ranks do not communicate."""
    return "deltaloom-dcp.json" if rank is None else f"deltaloom-dcp-{rank}.json"


def to_json(metadata: Metadata, results: Sequence[Sequence[WriteResult]], bases: Sequence[str]) -> str:
    """The file for a checkpoint that was written.

    Args:
        metadata: As the planner made it.
        results: What each rank wrote. The `storage_data` is a :class:`Part` or a :class:`Value`.
        bases: What the containers were packed against.

    Raises:
        TypeError: The planner's data is something else than numbers, texts, tuples, lists and dicts.
    """
    written = {result.index: result.storage_data for rank in results for result in rank}
    files = sorted({part.file for part in written.values() if isinstance(part, Part)})
    tensors: dict[str, Json] = {}
    values: dict[str, Json] = {}
    for fqn, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            chunks: list[Json] = []
            for chunk in stored.chunks:
                if 0 in chunk.sizes and 0 not in stored.size:
                    continue  # the share of a rank that has none
                part = written[MetadataIndex(fqn, chunk.offsets)]
                chunks.append(
                    {
                        "offsets": list(chunk.offsets),
                        "shape": list(chunk.sizes),
                        "file": files.index(part.file),
                        "name": part.name,
                    }
                )
            tensors[fqn] = {
                "dtype": str(stored.properties.dtype).removeprefix("torch."),
                "shape": list(stored.size),
                "requires_grad": stored.properties.requires_grad,
                "chunks": chunks,
            }
        else:
            values[fqn] = written[MetadataIndex(fqn)].encoded
    _check_planner_data(metadata.planner_data, TypeError)
    described = {
        "format": FORMAT,
        "version": VERSION,
        "bases": list(bases),
        "files": files,
        "tensors": tensors,
        "values": values,
        "planner": encode(metadata.planner_data, where="the planner's data"),
    }
    return json.dumps(described, allow_nan=False, separators=(",", ":"))


def read(folder: Path, rank: int | None = None) -> Description:
    """Reads and checks the file.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: It is not such a file.
    """
    path = folder / file_name(rank)
    with path.open("rb") as stream:
        text = stream.read(MAX_BYTES + 1)
    where = str(path)
    if len(text) > MAX_BYTES:
        raise ValueError(f"{where} is larger than {MAX_BYTES} bytes")
    described = loads(text, where=where)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ValueError(f"{where} does not describe a checkpoint of deltaloom.dcp")
    version = described.get("version")
    if version != VERSION:
        raise ValueError(f"{where} has version {version!r}; this deltaloom reads version {VERSION}")
    try:
        return _parse(described, where)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: not as expected ({type(error).__name__}: {error})") from error


def _parse(described: dict[str, Any], where: str) -> Description:
    files = [_plain_name(name, where) for name in _list(described["files"], where)]
    bases = [_text(base, where) for base in _list(described["bases"], where)]
    stored: dict[str, Any] = {}
    places: dict[MetadataIndex, Part | Value] = {}
    for fqn, tensor in described["tensors"].items():
        dtype = decode({"torch.dtype": tensor["dtype"]}, where=where)
        size = _sizes(tensor["shape"], where)
        chunks = []
        for number, chunk in enumerate(_list(tensor["chunks"], where)):
            offsets, sizes = _sizes(chunk["offsets"], where), _sizes(chunk["shape"], where)
            fits = len(offsets) == len(sizes) == len(size) and all(
                offset + length <= end for offset, length, end in zip(offsets, sizes, size, strict=True)
            )
            if not fits:
                raise ValueError(f"{where}: a part of {fqn!r} is outside of its shape {list(size)}")
            chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=sizes))
            index = MetadataIndex(fqn, offsets, number)
            if index in places:
                raise ValueError(f"{where}: two parts of {fqn!r} begin at {list(offsets)}")
            places[index] = Part(files[_place(chunk["file"], len(files), where)], _text(chunk["name"], where))
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
            raise ValueError(f"{where}: the parts of {fqn!r} do not make up its shape {list(size)}")
        properties = TensorProperties(dtype=dtype, requires_grad=tensor["requires_grad"] is True)
        stored[fqn] = TensorStorageMetadata(properties=properties, size=size, chunks=chunks)
    for fqn, value in described["values"].items():
        if fqn in stored:
            raise ValueError(f"{where}: {fqn!r} is both a tensor and a value")
        stored[fqn] = BytesStorageMetadata()
        places[MetadataIndex(fqn)] = Value(value)
    planner_data = decode(described["planner"], where=where)
    _check_planner_data(planner_data, ValueError)
    metadata = Metadata(stored, planner_data, places, StorageMeta(), None)
    return Description(metadata, files, bases)


def containers(base: str, folder: Path | None = None) -> list[str]:
    """The files of a base and of all bases that it stands on, nearest first.

    Args:
        base: A checkpoint of this package, another folder or file, or the name of a model.
        folder: The folder to which it is relative. None for the current one.

    Raises:
        ValueError: More than 256 checkpoints stand on each other.
    """
    found: list[str] = []
    seen: set[str] = set()
    waiting = [(base, folder)]
    while waiting:
        name, beside = waiting.pop(0)
        if name.startswith(SCHEME):
            found.append(resolve(name))
            continue
        path = Path(os.path.abspath(name if beside is None else beside / name))
        if str(path) in seen:
            continue
        seen.add(str(path))
        if len(seen) > MAX_BASES:
            raise ValueError(f"{base}: more than {MAX_BASES} checkpoints stand on each other")
        if (path / file_name(None)).is_file():
            description = read(path)
            found.extend(str(path / file) for file in description.files)
            waiting.extend((deeper, path) for deeper in description.bases)
        else:
            found.append(str(path))
    return found


def relative(base: str, folder: Path) -> str:
    """`base` as it is stored in the file of `folder`: relative, so that both may be moved."""
    if base.startswith(SCHEME):
        return base
    return PurePosixPath(Path(os.path.relpath(base, folder))).as_posix()


def _check_planner_data(data: object, error: type[Exception], depth: int = 0) -> None:
    if depth > 32:
        raise error("the planner's data is nested too deeply")
    if data is None or type(data) is str:
        return
    if type(data) is int and 0 <= data < _MAX_PLACE:
        return
    if type(data) in (tuple, list, dict):
        parts: list[object] = list(data)  # type: ignore[call-overload]
        if isinstance(data, dict):
            parts.extend(data.values())
        for part in parts:
            _check_planner_data(part, error, depth + 1)
        return
    raise error(f"the planner's data holds {data!r:.60}, not only texts, places, tuples, lists and dicts")


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, found {value!r:.60}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{where}: expected a text, found {value!r:.60}")
    return value


def _plain_name(value: object, where: str) -> str:
    name = _text(value, where)
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:"):
        raise ValueError(f"{where}: {name!r} is not the name of a file in this folder")
    return name


def _place(value: object, count: int, where: str) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{where}: there is no file {value!r:.60}")
    return value


def _sizes(value: object, where: str) -> torch.Size:
    sizes = _list(value, where)
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
        raise ValueError(f"{where}: {sizes!r:.60} are no sizes")
    return torch.Size(sizes)
