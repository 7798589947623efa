"""Saving and loading files of tensors, whatever library the tensors belong to."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from deltaloom import _lib
from deltaloom._errors import TensorNotFoundError
from deltaloom._inputs import Base, Path, bases_of, path_of, texts_of
from deltaloom._progress import Progress, reporting
from deltaloom._reports import PackReport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Copied", "Framework", "Preset", "Raw", "checkpoint_of", "framework_named", "framework_of"]

T = TypeVar("T")
Preset: TypeAlias = Literal["default", "max"]
Fetch: TypeAlias = "Callable[[int, int], Buffer]"
"""Gives the bytes of a tensor from a start to a stop."""


class Copied:
    """Bytes that have to be copied before they lie together in memory of the host."""

    def __init__(self, make: Callable[[], Buffer]) -> None:
        self.make = make


# Memory of the host for tensors that go on to a device.
_BATCH_BYTES = 256 << 20


class Framework(Protocol[T]):
    """What saving and loading need of a library of tensors."""

    def check(self, tensors: Sequence[tuple[str, T]]) -> None:
        """Refuses tensors that cannot be saved together."""

    def describe(self, name: str, tensor: T) -> tuple[str, Sequence[int], Buffer | Fetch | Copied]:
        """The dtype by its safetensors name, the shape, and the bytes."""

    def copied(self, tensor: T) -> T:
        """A copy in memory of the host that nobody else changes."""

    def empty(self, dtype: str, shape: Sequence[int], size: int) -> tuple[T, Buffer]:
        """A new tensor in memory of the host, and its bytes."""

    def bytes_of(self, tensor: Any, dtype: str) -> Buffer:
        """The bytes of a given tensor, to write to them."""

    def is_host(self, device: Any) -> bool:
        """Whether tensors on the device are in memory of the host."""

    def moved(self, tensor: T, device: Any) -> T:
        """The tensor on a device."""

    def cut(self, tensor: T, key: Any) -> T:
        """Part of a tensor, as one of its own."""


class _Copies:
    """The last copies that were made, so that memory for two tensors is enough."""

    _COUNT = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, memoryview] = OrderedDict()

    def of(self, key: int, copied: Copied) -> Fetch:
        def fetch(start: int, stop: int) -> memoryview:
            with self._lock:
                copy = self._kept.get(key)
                if copy is None:
                    copy = memoryview(copied.make())
                    self._kept[key] = copy
                    while len(self._kept) > self._COUNT:
                        self._kept.popitem(last=False)
            return copy[start:stop]

        return fetch


class Raw:
    """Tensors as their bytes: `bytearray`."""

    def check(self, tensors: Sequence[tuple[str, bytearray]]) -> None:
        pass

    def describe(self, name: str, tensor: bytearray) -> tuple[str, Sequence[int], Buffer | Fetch | Copied]:
        return "U8", [len(tensor)], tensor

    def copied(self, tensor: bytearray) -> bytearray:
        return bytearray(tensor)

    def empty(self, dtype: str, shape: Sequence[int], size: int) -> tuple[bytearray, Buffer]:
        out = bytearray(size)
        return out, out

    def bytes_of(self, tensor: Any, dtype: str) -> Buffer:
        return memoryview(tensor).cast("B")

    def is_host(self, device: Any) -> bool:
        return True

    def moved(self, tensor: bytearray, device: Any) -> bytearray:
        return tensor

    def cut(self, tensor: bytearray, key: Any) -> bytearray:
        raise TypeError('framework="raw" has rows only: a slice of the first dimension with step 1')


def framework_named(name: str) -> Framework[Any]:
    """The library with a name of safetensors: "pt", "np", or "raw" for bytes."""
    if name in ("pt", "torch", "pytorch"):
        from deltaloom.torch import FRAMEWORK as torch

        return torch
    if name in ("np", "numpy"):
        from deltaloom.numpy import FRAMEWORK as numpy

        return numpy
    if name == "raw":
        return Raw()
    raise ValueError(f'framework {name!r} does not exist: "pt", "np" and "raw" do')


def framework_of(tensors: Mapping[str, Any]) -> Framework[Any]:
    """The library that tensors belong to."""
    first = next(iter(tensors.values()), None)
    return framework_named("pt" if library_of(first) == "pt" else "np")


def library_of(value: Any) -> Literal["pt", "np", "raw"]:
    """The library that a value belongs to, without importing any."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return "pt" if "torch" in kinds else "np" if "numpy" in kinds else "raw"


def checkpoint_of(
    framework: Framework[T], tensors: Mapping[str, T], name: str, metadata: Mapping[str, str] | None
) -> _lib.Tensors:
    """A safetensors file of tensors that stay where they are."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"a mapping of names to tensors is needed, not {type(tensors).__name__}")
    items = list(tensors.items())
    if odd := next((key for key, _ in items if not isinstance(key, str)), None):
        raise TypeError(f"names of tensors are texts, not {odd!r}")
    framework.check(items)
    copies = _Copies()
    described: list[tuple[str, str, list[int], Buffer | Fetch]] = []
    for key, tensor in items:
        dtype, shape, source = framework.describe(key, tensor)
        found = copies.of(len(described), source) if isinstance(source, Copied) else source
        described.append((key, dtype, list(shape), found))
    return _lib.Tensors(name, described, texts_of(metadata))


def member_name(target: str) -> str:
    """The name of the file in a container: `tuned.loom` holds `tuned.safetensors`."""
    stem = os.path.splitext(os.path.basename(target))[0]
    is_plain = stem.isprintable() and not set(stem) & set('\\:/"') and stem not in ("", ".", "..")
    return f"{stem}.safetensors" if is_plain else "model.safetensors"


def save_file(
    framework: Framework[T],
    tensors: Mapping[str, T],
    filename: Path,
    *,
    base: Base | None,
    metadata: Mapping[str, str] | None,
    preset: Preset,
    threads: int,
    overwrite: bool,
    progress: bool | Progress | None,
) -> PackReport:
    target = path_of(filename)
    checkpoint = checkpoint_of(framework, tensors, member_name(target), metadata)
    with reporting(progress, "packing") as report:
        return PackReport.from_json(
            _lib.pack_tensors(checkpoint, target, bases_of(base), preset, threads, overwrite, report)
        )


def save(
    framework: Framework[T],
    tensors: Mapping[str, T],
    *,
    base: Base | None,
    metadata: Mapping[str, str] | None,
    preset: Preset,
    threads: int,
) -> bytes:
    checkpoint = checkpoint_of(framework, tensors, "model.safetensors", metadata)
    return _lib.pack_tensors_to_bytes(checkpoint, bases_of(base), preset, threads)


def load_file(
    framework: Framework[T],
    filename: Path,
    *,
    base: Base | None,
    device: Any,
    names: Iterable[str] | None,
    verify: bool,
    threads: int,
    progress: bool | Progress | None,
) -> dict[str, T]:
    reader = _lib.Reader.open(path_of(filename), bases_of(base), None, threads)
    return read(
        framework, reader, device=device, names=names, verify=verify, threads=threads, progress=progress
    )


def load(
    framework: Framework[T], data: Buffer, *, base: Base | None, device: Any, verify: bool, threads: int
) -> dict[str, T]:
    if isinstance(data, str):
        raise TypeError("bytes are needed; load_file takes a path")
    view = memoryview(data)
    reader = _lib.Reader.of_bytes(view if view.format == "B" else view.cast("B"), bases_of(base), threads)
    return read(framework, reader, device=device, names=None, verify=verify, threads=threads, progress=None)


def numbers_of(reader: _lib.Reader) -> dict[str, int]:
    """The number of each tensor by its name, or by `file:name` where several files have the name."""
    listed = reader.tensors()
    counts = Counter(name for name, *_ in listed)
    return {
        name if counts[name] == 1 else f"{file}:{name}": number
        for number, (name, _, _, _, file) in enumerate(listed)
    }


def read(
    framework: Framework[T],
    reader: _lib.Reader,
    *,
    device: Any,
    names: Iterable[str] | None,
    verify: bool,
    threads: int,
    progress: bool | Progress | None,
) -> dict[str, T]:
    """Reads tensors into new memory: all at once for the host, else some at a time."""
    numbers = numbers_of(reader)
    if isinstance(names, str):
        raise TypeError("names is a list of names, not one name")
    wanted = list(numbers if names is None else dict.fromkeys(names))
    listed = reader.tensors()
    is_host = framework.is_host(device)
    found: dict[str, T] = {}
    batch: list[tuple[int, Buffer]] = []
    waiting: dict[str, T] = {}
    size = 0

    with reporting(progress, "loading") as report:

        def flush() -> None:
            nonlocal size
            reader.read(batch, verify, threads, report)
            found.update({name: framework.moved(tensor, device) for name, tensor in waiting.items()})
            batch.clear()
            waiting.clear()
            size = 0

        for name in wanted:
            if name not in numbers:
                raise missing(name)
            _, dtype, shape, length, _ = listed[numbers[name]]
            if not is_host and batch and size + length > _BATCH_BYTES:
                flush()
            waiting[name], out = framework.empty(dtype, shape, length)
            batch.append((numbers[name], out))
            size += length
        flush()
    return found


def missing(name: str) -> TensorNotFoundError:
    """The error for a name that no tensor has."""
    error = TensorNotFoundError(f"tensor {name!r} not found")
    error.detail, error.tensor, error.hint = str(error), name, "keys() lists the tensors"
    return error
