"""Open files: one tensor, or some rows of one, without the others."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from deltaloom import _lib
from deltaloom._files import framework_named, library_of, missing, numbers_of
from deltaloom._inputs import Base, Path, bases_of, path_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Container", "LoomSlice", "TensorInfo", "safe_open"]

FrameworkName: TypeAlias = Literal["pt", "np", "raw"]


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it.

    Attributes:
        name: Its name.
        dtype: Its dtype by the name in safetensors, such as "BF16".
        shape: Its dimensions.
        original_bytes: Its size.
        file: The file that it is in.
        packed_bytes: Its size in the container; None in a plain file, as all that follows.
        predictor: How it was predicted.
        reference: The tensor of the base that it was predicted from, if there is one.
        digest: BLAKE3 of its bytes, in hexadecimal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    original_bytes: int
    file: str
    packed_bytes: int | None = None
    predictor: str | None = None
    reference: str | None = None
    digest: str | None = None


class Container:
    """An open container, plain file or folder, whose tensors are read one by one.

    `Container.open` and `safe_open` make one. It is a context manager, can be a base, and may be
    used by several threads. It cannot be pickled.
    """

    def __init__(self, reader: _lib.Reader, framework: FrameworkName, device: Any, threads: int) -> None:
        self._reader: _lib.Reader | None = reader
        self._framework_name = framework
        self._device = device
        self._threads = threads
        self._numbers = numbers_of(reader)
        self._listed = reader.tensors()

    @classmethod
    def open(
        cls,
        filename: Path,
        framework: FrameworkName = "pt",
        device: Any = "cpu",
        *,
        base: Base | None = None,
        threads: int = 0,
    ) -> Container:
        """Opens a file, as `safe_open` does."""
        reader = _lib.Reader.open(path_of(filename), bases_of(base), None, threads)
        return Container(reader, framework, device, threads)

    @property
    def _open_reader(self) -> _lib.Reader:
        if self._reader is None:
            raise ValueError("the file is closed")
        return self._reader

    def _as_base(self) -> _lib.Reader:
        return self._open_reader

    @property
    def _framework(self) -> Any:
        framework = framework_named(self._framework_name)
        framework.is_host(self._device)
        return framework

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Tensors that were read stay."""
        self._reader = None

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def keys(self) -> list[str]:
        """The names of the tensors, sorted: `file:name` where several files have a name."""
        return sorted(self._numbers)

    def offset_keys(self) -> list[str]:
        """The names in the order in which the tensors lie in their files."""
        return list(self._numbers)

    def metadata(self) -> dict[str, str] | None:
        """The texts in the headers of the files."""
        return self._open_reader.metadata()

    def files(self) -> list[str]:
        """The paths of the files: weights, config.json, tokenizers."""
        return self._open_reader.files()

    def read_file(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            KeyError: There is no such file.
        """
        return self._open_reader.file(path, self._threads)

    def info(self, name: str) -> TensorInfo:
        """What is known of a tensor without reading it."""
        number = self._number(name)
        _, dtype, shape, size, file = self._listed[number]
        info = TensorInfo(name, dtype, tuple(shape), size, file)
        described = self._open_reader.describe(number)
        if described is None:
            return info
        told = json.loads(described)
        return info._replace(
            packed_bytes=told["packed_bytes"],
            predictor=told["predictor"],
            reference=told.get("reference"),
            digest=told["digest"],
        )

    def get_tensor(self, name: str) -> Any:
        """A tensor, compared with its digest.

        Raises:
            TensorNotFoundError: There is no such tensor.
            CorruptError: The file is damaged.
        """
        number, framework = self._number(name), self._framework
        _, dtype, shape, size, _ = self._listed[number]
        tensor, out = framework.empty(dtype, shape, size)
        self._open_reader.read([(number, out)], True, self._threads, None)
        return framework.moved(tensor, self._device)

    def get_slice(self, name: str) -> LoomSlice:
        """A tensor of which parts are read when they are asked for."""
        return LoomSlice(self, name, self._number(name))

    def read_into(self, name: str, out: Buffer | Any, rows: slice | None = None) -> None:
        """Reads a tensor, or some of its rows, into memory that is there. Nothing is allocated.

        Args:
            name: Its name.
            out: Writable memory of exactly its size: an array or tensor of its dtype, or bytes.
            rows: Rows of the first dimension, with step 1.

        Raises:
            RuntimeError: Another call is writing to the same memory.
            ValueError: The memory has another size, is read-only, or does not lie together.
            TypeError: It has another dtype.
        """
        number = self._number(name)
        _, dtype, shape, _, _ = self._listed[number]
        if isinstance(out, bytes | bytearray | memoryview):
            buffer: Buffer = memoryview(out).cast("B")
        else:
            buffer = framework_named(library_of(out)).bytes_of(out, dtype)
        if rows is None:
            self._open_reader.read([(number, buffer)], True, self._threads, None)
            return
        start, stop, step = rows.indices(shape[0] if shape else 1)
        if step != 1:
            raise ValueError("rows have step 1")
        self._open_reader.read_rows(number, (start, max(start, stop)), buffer, self._threads)

    def _rows(self, number: int, start: int, stop: int) -> Any:
        """Rows of the first dimension as a new tensor in memory of the host."""
        _, dtype, shape, size, _ = self._listed[number]
        part = [stop - start, *shape[1:]]
        length = size * (stop - start) // shape[0] if shape[0] else 0
        tensor, out = self._framework.empty(dtype, part, length)
        self._open_reader.read_rows(number, (start, stop), out, self._threads)
        return tensor

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            raise missing(name)
        return self._numbers[name]


class safe_open(Container):
    """Opens a container, a safetensors file or a folder of them, as `safetensors.safe_open` does.

    ```python
    with safe_open("tuned.loom", "pt", base="base.safetensors") as f:
        mine = f.get_slice("model.layers.0.mlp.up_proj.weight")[first:last]
    ```

    Args:
        filename: The file or folder.
        framework: "pt" for torch, "np" for numpy, "raw" for `bytearray`.
        device: Where tensors go.
        base: What the container was packed against.
        threads: How many; 0 means one per core.

    Raises:
        BaseMismatchError: The bases are not those that it needs.
        CorruptError: The file is damaged or of another kind.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        filename: Path,
        framework: FrameworkName = "pt",
        device: Any = "cpu",
        *,
        base: Base | None = None,
        threads: int = 0,
    ) -> None:
        reader = _lib.Reader.open(path_of(filename), bases_of(base), None, threads)
        super().__init__(reader, framework, device, threads)


class LoomSlice:
    """A tensor of which parts are read when they are asked for.

    Rows are decoded chunk by chunk, and columns are cut afterwards. Parts are checked by checksums
    only: a digest needs the whole tensor.
    """

    def __init__(self, container: Container, name: str, number: int) -> None:
        self._container = container
        self._name = name
        self._number = number
        _, self._dtype, self._shape, _, _ = container._listed[number]

    def get_shape(self) -> list[int]:
        """The dimensions of the whole tensor."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """Its dtype by the name in safetensors."""
        return self._dtype

    def __getitem__(self, key: Any) -> Any:
        """Part of the tensor: what the same index gives of the whole one."""
        container = self._container
        framework = container._framework
        keys: Sequence[Any] = key if isinstance(key, tuple) else (key,)
        rows = _rows_of(keys[0], self._shape[0]) if keys and self._shape else None
        if rows is None:
            tensor = container.get_tensor(self._name)
            is_whole = all(one is Ellipsis or one == slice(None) for one in keys if one is not None)
            return tensor if is_whole and None not in keys else framework.cut(tensor, key)
        start, stop, rest = rows
        part = container._rows(self._number, start, stop)
        if rest != slice(None) or len(keys) > 1:
            part = framework.cut(part, (rest, *keys[1:]))
        return framework.moved(part, container._device)


def _rows_of(key: Any, count: int) -> tuple[int, int, Any] | None:
    """The rows that a key of the first dimension needs, and the key within them."""
    if isinstance(key, slice):
        start, stop, step = key.indices(count)
        chosen = range(start, stop, step)
        if not chosen:
            return 0, 0, slice(None)
        if step > 0:
            return start, chosen[-1] + 1, slice(None, None, None if step == 1 else step)
        return chosen[-1], start + 1, slice(None, None, step)
    if key is None or key is Ellipsis or isinstance(key, bool):
        return None
    try:
        row = operator.index(key)
    except TypeError:
        return None
    if not -count <= row < count:
        raise IndexError(f"row {row} of {count}")
    row %= count
    return row, row + 1, 0
