"""Save and load tensors of torch: containers of exact differences, or plain safetensors files.

```python
from deltaloom.torch import load_file, save_file

save_file(tuned.state_dict(), "tuned.loom", base="base.safetensors")
weights = load_file("tuned.loom", base="base.safetensors", device="cuda:0")
```

Tensors in memory of the host are read and written where they are. Those of a device are copied a
part at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch

from deltaloom import _files, _lib
from deltaloom._errors import TensorNotFoundError
from deltaloom._files import Copied, Fetch, Framework, Preset
from deltaloom._inputs import Base, Path, bases_of, path_of
from deltaloom._progress import Progress, reporting
from deltaloom._reports import ApplyReport, LoadReport, PackReport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["apply_", "load", "load_file", "load_into", "load_model", "save", "save_file", "save_model"]

Device: TypeAlias = "str | int | torch.device"

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
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}
# An older torch has fewer of them.
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, of_torch) for name, of_torch in _NAMES.items() if hasattr(torch, of_torch)
}
_BY_DTYPE = {dtype: name for name, dtype in _DTYPES.items()}
# Two numbers of four bits are one element of torch, along the last dimension.
_PAIRS = "F4"


class _Torch:
    """torch, as saving and loading need it."""

    def check(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        places: dict[Any, list[tuple[int, int, str]]] = {}
        for name, tensor in tensors:
            _check_kind(name, tensor)
            if tensor.numel() and tensor.is_contiguous():
                start = tensor.data_ptr()
                place = (start, start + tensor.numel() * tensor.element_size(), name)
                places.setdefault(tensor.device, []).append(place)
        for found in places.values():
            found.sort()
            for before, after in zip(found, found[1:], strict=False):
                if after[0] < before[1] and after[:2] != before[:2]:
                    raise ValueError(
                        f"tensors {before[2]!r} and {after[2]!r} share a part of their memory; "
                        "save a clone() of one of them"
                    )

    def describe(self, name: str, tensor: torch.Tensor) -> tuple[str, Sequence[int], Buffer | Fetch | Copied]:
        dtype = _BY_DTYPE.get(tensor.dtype)
        if dtype is None:
            raise TypeError(f"{name!r}: safetensors has no dtype for {tensor.dtype}")
        shape = list(tensor.shape)
        if dtype == _PAIRS:
            if not shape:
                raise TypeError(f"{name!r}: a single {tensor.dtype} cannot be saved")
            shape[-1] *= 2
        plain = tensor.detach()
        if not plain.is_contiguous() or plain.is_conj() or plain.is_neg():
            return dtype, shape, Copied(lambda: _bytes(_host(plain)))
        if plain.device.type == "cpu":
            return dtype, shape, _bytes(plain)
        flat = _flat(plain)
        return dtype, shape, lambda start, stop: _numpy(flat[start:stop].cpu())

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", copy=True).contiguous()

    def empty(self, dtype: str, shape: Sequence[int], size: int) -> tuple[torch.Tensor, Buffer]:
        of_torch = _DTYPES.get(dtype)
        if of_torch is None:
            raise TypeError(f'this torch has no dtype for {dtype}; framework="raw" gives the bytes')
        sizes = list(shape)
        if dtype == _PAIRS:
            if not sizes or sizes[-1] % 2:
                raise TypeError(f"torch has no tensor of {dtype} with shape {sizes}")
            sizes[-1] //= 2
        tensor = torch.empty(sizes, dtype=of_torch)
        return tensor, _bytes(tensor)

    def bytes_of(self, tensor: Any, dtype: str) -> Buffer:
        if tensor.dtype not in (torch.uint8, _DTYPES.get(dtype)):
            raise TypeError(f"the tensor given has dtype {tensor.dtype}, the one to read {dtype}")
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError("the elements of the tensor do not lie together in memory of the host")
        found: Buffer = _bytes(tensor.detach())
        return found

    def is_host(self, device: Any) -> bool:
        return bool(torch.device(device).type == "cpu")

    def moved(self, tensor: torch.Tensor, device: Any) -> torch.Tensor:
        return tensor.to(device)

    def cut(self, tensor: torch.Tensor, key: Any) -> torch.Tensor:
        return tensor[key].clone(memory_format=torch.contiguous_format)


def _check_kind(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name!r} is no tensor but {type(tensor).__name__}")
    if hasattr(tensor, "full_tensor"):
        raise TypeError(f"{name!r} is spread over several processes; save its full_tensor()")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name!r} is sparse ({tensor.layout}); save its to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name!r} is quantised; save its int_repr() and its scales")
    if tensor.device.type == "meta":
        raise ValueError(f"{name!r} is on the device meta, and has no bytes")


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().cpu()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a tensor."""
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return parts.reshape(-1).view(torch.uint8)


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.numpy()


def _bytes(tensor: torch.Tensor) -> Any:
    return _numpy(_flat(tensor)) if tensor.numel() else bytearray()


FRAMEWORK: Framework[Any] = _Torch()


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: Path,
    *,
    base: Base | None = None,
    metadata: Mapping[str, str] | None = None,
    preset: Preset = "default",
    threads: int = 0,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> PackReport:
    """Packs tensors into a container, as differences from a base where one is given.

    The container holds the safetensors file that `safetensors.torch.save_file` would write, so
    `deltaloom unpack` gives that file. Tensors are read where they are: nothing may change them
    until the call returns. Tied weights are stored once, and come back as separate tensors.

    Args:
        tensors: Tensors by name, on any device.
        filename: The container to write. It appears when it is complete.
        base: What the reader will have: see `Base`.
        metadata: Texts for the header of the safetensors file.
        preset: "max" takes longer and is smaller.
        threads: How many; 0 means one per core. They do not change the result.
        overwrite: Replace an existing file. Unlike in safetensors, the default is not to.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        TypeError: A sparse, quantised or distributed tensor, or one of a dtype that safetensors
            does not have.
        ValueError: Two tensors share a part of their memory, or one is on the device meta.
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
    tensors: Mapping[str, torch.Tensor],
    *,
    base: Base | None = None,
    metadata: Mapping[str, str] | None = None,
    preset: Preset = "default",
    threads: int = 0,
) -> bytes:
    """Packs tensors into bytes, as `save_file` does into a file."""
    return _files.save(FRAMEWORK, tensors, base=base, metadata=metadata, preset=preset, threads=threads)


def load_file(
    filename: Path,
    *,
    base: Base | None = None,
    device: Device = "cpu",
    names: Iterable[str] | None = None,
    verify: bool = True,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Loads the tensors of a container, or of a safetensors file or a folder of them.

    Args:
        filename: A container, a plain file, or a folder with shards.
        base: What the container was packed against, in any order and under any names.
        device: Where the tensors go. At most 256 MB wait in memory of the host for another device.
        names: Only these tensors; others are not decoded.
        verify: Compare every tensor with its digest. Checksums are compared in any case.
        threads: How many; 0 means one per core.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        BaseMismatchError: The bases are not those that it needs.
        CorruptError: The file is damaged.
        TensorNotFoundError: It has no tensor of such a name.
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
    data: Buffer, *, base: Base | None = None, device: Device = "cpu", verify: bool = True, threads: int = 0
) -> dict[str, torch.Tensor]:
    """Loads the tensors of a container or safetensors file in memory, as `load_file` does."""
    return _files.load(FRAMEWORK, data, base=base, device=device, verify=verify, threads=threads)


def _named(target: torch.nn.Module | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return target.state_dict() if isinstance(target, torch.nn.Module) else target


def load_into(
    target: torch.nn.Module | Mapping[str, torch.Tensor],
    filename: Path,
    *,
    base: Base | None = None,
    strict: bool = True,
    verify: bool = True,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> LoadReport:
    """Loads a file into the tensors of a model, without memory for another model.

    A tensor of the same dtype and shape in memory of the host is decoded where it is; others are
    decoded beside it and copied, which also converts the dtype.

    Args:
        target: A module, or tensors by name.
        filename: A container, a plain file, or a folder with shards.
        base: What the container was packed against.
        strict: Names that only one side has are an error, before anything is changed.
        verify: Compare every tensor with its digest.
        threads: How many; 0 means one per core.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        KeyError: Names are missing or unexpected, and `strict` is set.
        ValueError: A tensor has another shape.
        CorruptError: The file is damaged. Some tensors may be changed by then.
    """
    reader = _lib.Reader.open(path_of(filename), bases_of(base), None, threads)
    return _load_into(_named(target), reader, strict, verify, threads, progress)


def _load_into(
    tensors: Mapping[str, torch.Tensor],
    reader: _lib.Reader,
    strict: bool,
    verify: bool,
    threads: int,
    progress: bool | Progress | None,
) -> LoadReport:
    numbers, listed = _files.numbers_of(reader), reader.tensors()
    missing = [name for name in tensors if name not in numbers]
    unexpected = [name for name in numbers if name not in tensors]
    if strict and (missing or unexpected):
        raise _lacking(missing, unexpected)
    framework = _Torch()
    direct: list[tuple[int, Buffer]] = []
    copied: list[tuple[int, torch.Tensor]] = []
    taken: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name not in numbers:
            continue
        _check_kind(name, tensor)
        number = numbers[name]
        _, dtype, shape, _, _ = listed[number]
        sizes = [*shape[:-1], shape[-1] // 2] if dtype == _PAIRS and shape else shape
        if list(tensor.shape) != sizes:
            raise ValueError(f"{name!r} has shape {list(tensor.shape)}, and {sizes} in the file")
        fits = tensor.dtype == _DTYPES.get(dtype) and tensor.device.type == "cpu" and tensor.is_contiguous()
        # The second name of tied weights is compared with the first by copying it there.
        if fits and tensor.data_ptr() not in taken:
            taken[tensor.data_ptr()] = tensor
            direct.append((number, _bytes(tensor.detach())))
        else:
            copied.append((number, tensor))
    with reporting(progress, "loading") as report:
        reader.read(direct, verify, threads, report)
        for number, tensor in copied:
            _, dtype, shape, size, _ = listed[number]
            read, out = framework.empty(dtype, shape, size)
            reader.read([(number, out)], verify, threads, None)
            with torch.no_grad():
                tensor.copy_(read)
    loaded = [number for number, _ in direct] + [number for number, _ in copied]
    return LoadReport(
        {
            "tensors": len(loaded),
            "bytes": sum(listed[number][3] for number in loaded),
            "missing": missing,
            "unexpected": unexpected,
        }
    )


def _lacking(missing: Sequence[str], unexpected: Sequence[str]) -> TensorNotFoundError:
    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")

    parts = []
    if missing:
        parts.append(f"the file lacks {len(missing)} tensors: {some(missing)}")
    if unexpected:
        parts.append(f"the model has no place for {len(unexpected)} tensors: {some(unexpected)}")
    error = TensorNotFoundError("; ".join(parts))
    error.detail, error.hint = str(error), "strict=False loads what both have"
    return error


def _shared(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names whose memory another name has as well, with that name."""
    tied = getattr(model, "_tied_weights_keys", None) or ()
    first: dict[tuple[Any, ...], str] = {}
    # Names that the model calls copies come last, so that the other one is kept.
    ordered = sorted(state, key=lambda name: any(name == one or name.endswith("." + one) for one in tied))
    aliases = {}
    for name in ordered:
        tensor = state[name]
        if not tensor.numel() or tensor.device.type == "meta":
            continue
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        kept = first.setdefault(place, name)
        if kept != name:
            aliases[name] = kept
    return aliases


def save_model(
    model: torch.nn.Module,
    filename: Path,
    *,
    base: Base | None = None,
    metadata: Mapping[str, str] | None = None,
    preset: Preset = "default",
    threads: int = 0,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> PackReport:
    """Packs a model. Of tied weights, one is saved, and `load_model` ties the others to it.

    The header says which names were left out, as that of `safetensors.torch.save_model` does.
    Arguments and errors are those of `save_file`.
    """
    state = model.state_dict()
    aliases = _shared(model, state)
    return save_file(
        {name: tensor for name, tensor in state.items() if name not in aliases},
        filename,
        base=base,
        metadata={**(metadata or {}), **aliases},
        preset=preset,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


def load_model(
    model: torch.nn.Module,
    filename: Path,
    *,
    base: Base | None = None,
    strict: bool = True,
    verify: bool = True,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> LoadReport:
    """Loads a file into a model whose tied weights it may have once. Otherwise as `load_into`."""
    state = model.state_dict()
    aliases = _shared(model, state)
    reader = _lib.Reader.open(path_of(filename), bases_of(base), None, threads)
    in_file = _files.numbers_of(reader)
    # Of names for the same memory, the file may have any.
    held = {aliases.get(name, name) for name in state if name in in_file}
    target = {
        name: tensor
        for name, tensor in state.items()
        if name in in_file or (name not in aliases and name not in held)
    }
    return _load_into(target, reader, strict, verify, threads, progress)


def apply_(
    tensors: Mapping[str, torch.Tensor],
    filename: Path,
    *,
    verify: Literal["before", "none"] = "before",
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> ApplyReport:
    """Turns the tensors of a base into those of a fine-tune, in memory.

    Everything is decoded before the first tensor changes, so an error leaves all of them as they
    were. Until then, only elements that change are held, with their places: 6 bytes for one of BF16.
    Tensors of which so much changes that this would take over half of them are held as they are.

    Args:
        tensors: The base that the container was packed against, by the names of the fine-tune.
        filename: The container.
        verify: "before" compares every tensor with its digest before anything changes. "none" trusts
            the checksums. The base is compared in any case.
        threads: How many; 0 means one per core.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        BaseMismatchError: The tensors are not the base.
        KeyError: The container has a tensor that is not among them.
        ValueError: A tensor has another dtype or shape; the file is not packed.
    """
    if verify not in ("before", "none"):
        raise ValueError(f'verify {verify!r} does not exist: "before" and "none" do')
    reader = _lib.Reader.open(path_of(filename), bases_of(tensors), None, threads)
    numbers, listed = _files.numbers_of(reader), reader.tensors()
    if absent := [name for name in numbers if name not in tensors]:
        raise _lacking([], absent)
    staged: list[_Staged] = []
    with reporting(progress, "applying") as report:
        for name, number in numbers.items():
            _, dtype, shape, size, _ = listed[number]
            _check_like(name, tensors[name], dtype, shape)
            one = _stage(reader, (number, dtype, shape, size), tensors[name], verify == "before", threads)
            if one.changed:
                staged.append(one)
            if report is not None:
                report(number + 1, len(listed))
    with torch.no_grad():
        for one in staged:
            one.put()
    return ApplyReport(
        {
            "tensors": len(listed),
            "changed_tensors": len(staged),
            "changed_elements": sum(one.changed for one in staged),
            "staged_bytes": sum(one.held_bytes for one in staged),
            "bytes": sum(one.tensor.numel() * one.tensor.element_size() for one in staged),
        }
    )


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of a size, as which elements of any dtype are copied."""


class _Staged(NamedTuple):
    """What a tensor becomes: all of it, or elements at places."""

    tensor: torch.Tensor
    changed: int
    values: torch.Tensor
    places: torch.Tensor | None

    @property
    def held_bytes(self) -> int:
        held = (self.values,) if self.places is None else (self.places, self.values)
        return sum(one.numel() * one.element_size() for one in held)

    def put(self) -> None:
        """Changes the tensor, which cannot fail for what is in the container."""
        if self.places is None:
            self.tensor.copy_(self.values)
            return
        target = self.tensor.detach()
        whole = target if target.is_contiguous() else target.contiguous()
        elements = _flat(whole).view(self.values.dtype)
        elements[self.places.to(whole.device).long()] = self.values.to(whole.device)
        if whole is not target:
            target.copy_(whole)


def _check_like(name: str, tensor: torch.Tensor, dtype: str, shape: Sequence[int]) -> None:
    _check_kind(name, tensor)
    kind = _DTYPES.get(dtype)
    sizes = [*shape[:-1], shape[-1] // 2] if dtype == _PAIRS and shape else list(shape)
    if tensor.dtype != kind or list(tensor.shape) != sizes:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"{name!r} is {found}, and {kind} {sizes} in the container")


def _stage(
    reader: _lib.Reader,
    place: tuple[int, str, Sequence[int], int],
    old: torch.Tensor,
    verify: bool,
    threads: int,
) -> _Staged:
    number, dtype, shape, size = place
    changes = reader.changes(number, _bytes(_host(old.detach())), verify, threads)
    if changes is not None:
        element, places, values = changes
        count = len(values) // element
        if not count:
            return _Staged(old, 0, torch.empty(0), None)
        wide = torch.int32 if len(places) == 4 * count else torch.int64
        held = _words(places, wide)
        # Elements of a dtype that has no codec of its own, as complex ones, come byte by byte.
        changed = torch.unique(held // (old.element_size() // element)).numel()
        return _Staged(old, changed, _words(values, _WORDS[element]), held)
    new, out = FRAMEWORK.empty(dtype, shape, size)
    reader.read([(number, out)], verify, threads, None)
    word = _WORDS[min(old.element_size(), 8)]
    differs = _flat(new).view(word) != _flat(_host(old.detach())).view(word)
    return _Staged(old, int(differs.sum()), new, None)


def _words(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)
