"""Save and load numpy arrays: containers of exact differences, or plain safetensors files.

```python
from deltaloom.numpy import load_file, save_file

save_file(arrays, "tuned.loom", base="base.safetensors")
arrays = load_file("tuned.loom", base="base.safetensors")
```

BF16 and FP8 are types of `ml_dtypes` (`pip install deltaloom[numpy]`); no array ever comes back in
another dtype than it was saved in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deltaloom import _files
from deltaloom._files import Copied, Fetch, Framework, Preset
from deltaloom._inputs import Base, Path
from deltaloom._progress import Progress
from deltaloom._reports import PackReport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["load", "load_file", "save", "save_file"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
# Types that numpy does not have, by their names in ml_dtypes.
_ML_NAMES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_BY_DTYPE = {name: dtype for dtype, name in (_NAMES | _ML_NAMES).items()}


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype of safetensors.

    Raises:
        ImportError: It is one of ml_dtypes, which is not installed.
        TypeError: numpy has no such dtype.
    """
    if name in _NAMES:
        return np.dtype(_NAMES[name])
    if name not in _ML_NAMES:
        raise TypeError(f'numpy has no dtype for {name}; framework="raw" gives the bytes')
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f"arrays of {name} need ml_dtypes: pip install deltaloom[numpy]") from error
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_NAMES[name]))
    return found


class _Numpy:
    """numpy, as saving and loading need it."""

    def check(self, tensors: Sequence[tuple[str, Array]]) -> None:
        for name, array in tensors:
            if not isinstance(array, np.ndarray | np.generic):
                raise TypeError(f"{name!r} is no numpy array but {type(array).__name__}")

    def describe(self, name: str, tensor: Array) -> tuple[str, Sequence[int], Buffer | Fetch | Copied]:
        array = np.asarray(tensor)
        dtype = _BY_DTYPE.get(array.dtype.name)
        if dtype is None or array.dtype.hasobject:
            raise TypeError(f"{name!r}: safetensors has no dtype for {array.dtype}")
        if _is_plain(array):
            return dtype, array.shape, _bytes(array)
        return dtype, array.shape, Copied(lambda: _bytes(_plain(array)))

    def copied(self, tensor: Array) -> Array:
        return _plain(tensor, copy=True)

    def empty(self, dtype: str, shape: Sequence[int], size: int) -> tuple[Array, Buffer]:
        array = np.empty(tuple(shape), dtype_of(dtype))
        return array, _bytes(array)

    def bytes_of(self, tensor: Any, dtype: str) -> Buffer:
        if not isinstance(tensor, np.ndarray):
            return memoryview(tensor).cast("B")
        if tensor.dtype != np.uint8 and tensor.dtype != dtype_of(dtype):
            raise TypeError(f"the array has dtype {tensor.dtype}, the tensor {dtype}")
        if not _is_plain(tensor):
            raise ValueError("the elements of the array do not lie together in memory")
        found: Buffer = _bytes(tensor)
        return found

    def is_host(self, device: Any) -> bool:
        if str(device) != "cpu":
            raise ValueError(f'numpy has no device {device!r}: only "cpu"')
        return True

    def moved(self, tensor: Array, device: Any) -> Array:
        return tensor

    def cut(self, tensor: Array, key: Any) -> Array:
        return np.array(tensor[key])


def _is_plain(array: Array) -> bool:
    return bool(array.flags.c_contiguous) and array.dtype.isnative and _is_little


_is_little = np.little_endian


def _plain(array: Array, copy: bool = False) -> Array:
    """Elements in row-major order, little endian."""
    return np.array(array, dtype=array.dtype.newbyteorder("<"), order="C", copy=copy or None)


def _bytes(array: Array) -> Any:
    return array.reshape(-1).view(np.uint8)


FRAMEWORK: Framework[Any] = _Numpy()


def save_file(
    tensors: Mapping[str, Array],
    filename: Path,
    *,
    base: Base | None = None,
    metadata: Mapping[str, str] | None = None,
    preset: Preset = "default",
    threads: int = 0,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> PackReport:
    """Packs arrays into a container, as differences from a base where one is given.

    The container holds the safetensors file that `safetensors.numpy.save_file` would write, so
    `deltaloom unpack` gives that file. Arrays are read where they are: nothing may change them
    until the call returns. Those that do not lie together in memory are copied one at a time.

    Args:
        tensors: Arrays by name, of any shape and any dtype of safetensors.
        filename: The container to write. It appears when it is complete.
        base: What the reader will have: see `Base`.
        metadata: Texts for the header of the safetensors file.
        preset: "max" takes longer and is smaller.
        threads: How many; 0 means one per core. They do not change the result.
        overwrite: Replace an existing file. Unlike in safetensors, the default is not to.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        TypeError: An array of a dtype that safetensors does not have, such as objects.
        ExistsError: The file exists.
        OSError: It cannot be written.
    """
    return _files.save_file(
        FRAMEWORK,
        tensors,
        filename,
        base=base,
        metadata=metadata,
        preset=preset,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


def save(
    tensors: Mapping[str, Array],
    *,
    base: Base | None = None,
    metadata: Mapping[str, str] | None = None,
    preset: Preset = "default",
    threads: int = 0,
) -> bytes:
    """Packs arrays into bytes, as `save_file` does into a file."""
    return _files.save(FRAMEWORK, tensors, base=base, metadata=metadata, preset=preset, threads=threads)


def load_file(
    filename: Path,
    *,
    base: Base | None = None,
    device: str = "cpu",
    names: Iterable[str] | None = None,
    verify: bool = True,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> dict[str, Array]:
    """Loads the arrays of a container, or of a safetensors file or a folder of them.

    Args:
        filename: A container, a plain file, or a folder with shards.
        base: What the container was packed against, in any order and under any names.
        device: "cpu".
        names: Only these tensors; others are not decoded.
        verify: Compare every tensor with its digest. Checksums are compared in any case.
        threads: How many; 0 means one per core.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        BaseMismatchError: The bases are not those that it needs.
        CorruptError: The file is damaged.
        TensorNotFoundError: It has no tensor of such a name.
        ImportError: It has BF16 or FP8, and ml_dtypes is not installed.
    """
    return _files.load_file(
        FRAMEWORK,
        filename,
        base=base,
        device=device,
        names=names,
        verify=verify,
        threads=threads,
        progress=progress,
    )


def load(
    data: Buffer, *, base: Base | None = None, device: str = "cpu", verify: bool = True, threads: int = 0
) -> dict[str, Array]:
    """Loads the arrays of a container or safetensors file in memory, as `load_file` does."""
    return _files.load(FRAMEWORK, data, base=base, device=device, verify=verify, threads=threads)
