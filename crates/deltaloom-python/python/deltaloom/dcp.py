"""Storage for PyTorch's distributed checkpoints (`torch.distributed.checkpoint`).

Each rank writes one container, `rank-00000.loom` and so on; `deltaloom-dcp.json` says where each
part of each tensor is. Against `base=`, an earlier checkpoint, only differences are stored. Any
number of ranks may load, and each decodes only the rows that it needs. No pickle is written or read:

```python
import torch.distributed.checkpoint as dcp
from deltaloom.dcp import LoomStorageReader, LoomStorageWriter

dcp.save(state, storage_writer=LoomStorageWriter("ckpt/step-200", base="ckpt/step-100"))
dcp.load(state, storage_reader=LoomStorageReader("ckpt/step-200"))
```

Values that are no tensors are stored as JSON: None, bool, int, float, str, bytes, lists, tuples,
sets and dicts of them. Others are refused.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
import uuid
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from deltaloom import _dcp_metadata as described
from deltaloom import pack, safe_open, unpack
from deltaloom._dcp_metadata import Part, Value
from deltaloom._values import HINT, encode
from deltaloom.torch import save_file

__all__ = ["LoomStorageReader", "LoomStorageWriter", "LoomStream"]

Path_ = str | os.PathLike[str]


class LoomStorageWriter(StorageWriter):
    """Writes a distributed checkpoint as containers.

    Args:
        path: Folder of the checkpoint. `checkpoint_id` of `dcp.save` takes its place.
        base: What to store differences from: a checkpoint that was written by this class, with any
            number of ranks, a safetensors file, a folder, or `hf://org/name`. It must be there when
            the checkpoint is loaded; its path is stored relative to `path`.
        preset: `"default"` or `"max"`, which is slower and smaller.
        threads: Threads of each rank. 0 for one per core.
        sync_files: Sync the description and the folder. Containers are always synced.
        overwrite: Replace a checkpoint that is at `path`.

    Raises:
        CheckpointException: From `dcp.save`, which wraps FileExistsError if there is a checkpoint at
            `path`, and TypeError if a value cannot be stored without pickle.
    """

    def __init__(
        self,
        path: Path_,
        *,
        base: Path_ | None = None,
        preset: Literal["default", "max"] = "default",
        threads: int = 0,
        sync_files: bool = True,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.base = None if base is None else os.fspath(base)
        self.preset = preset
        self.threads = threads
        self.sync_files = sync_files
        self.overwrite = overwrite
        self.save_id = str(uuid.uuid4())
        self._rank: int | None = None
        """The rank, if ranks do not communicate."""

    def reset(self, checkpoint_id: Path_ | None = None) -> None:
        if checkpoint_id:
            self.path = Path(checkpoint_id)
        self.save_id = str(uuid.uuid4())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._rank = None if kwargs.get("use_collectives", True) else int(kwargs.get("rank") or 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if self.base is not None and _same_place(self.base, self.path):
            raise ValueError(f"{self.path}: a checkpoint cannot be its own base")
        names = "deltaloom-dcp*.json" if self._rank is None else described.file_name(self._rank)
        if not self.overwrite and any(self.path.glob(names)):
            what = "there is a checkpoint already (overwrite=True replaces it)"
            raise FileExistsError(17, what, str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # From here on the old checkpoint is none, so one that is half overwritten is never read.
        (self.path / described.file_name(self._rank)).unlink(missing_ok=True)
        first = self._rank or 0
        return [dataclasses.replace(plan, storage_data=first + i) for i, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        file = f"rank-{plan.storage_data:05}.loom"
        tensors: dict[str, torch.Tensor] = {}
        results = []
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                value = Value(_encoded(planner, item))
                results.append(WriteResult(item.index, 0, value))
                continue
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            name = _name(item)
            while name in tensors:
                name += "@"
            tensors[name] = tensor.detach()
            results.append(WriteResult(item.index, tensor.nbytes, Part(file, name)))
        if tensors:
            save_file(
                tensors,
                self.path / file,
                base=None if self.base is None else described.containers(self.base),
                preset=self.preset,
                threads=self.threads,
                overwrite=True,
            )
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        bases = [] if self.base is None else [described.relative(self.base, self.path)]
        text = described.to_json(metadata, results, bases)
        if self._rank is None:
            _remove_leftovers(self.path, results)
        _write_whole(self.path / described.file_name(self._rank), text, self.sync_files)
        metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        metadata.storage_meta = self.storage_meta()

    @property
    def checkpoint_id(self) -> Path_:
        """The folder."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path_) -> bool:
        return _is_path(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.path, save_id=self.save_id)


class LoomStorageReader(StorageReader):
    """Reads a checkpoint that :class:`LoomStorageWriter` wrote, on any number of ranks.

    Rows that nobody asked for are not decoded. A tensor that is read as a whole is compared with its
    digest.

    Args:
        path: Folder of the checkpoint. `checkpoint_id` of `dcp.load` takes its place.
        base: Where its base is, if that was moved.
        threads: Threads of each rank. 0 for one per core.

    Raises:
        CheckpointException: From `dcp.load`, which wraps FileNotFoundError if the checkpoint or its
            base is not there, and ValueError if a file is damaged or the base is another one.
    """

    def __init__(self, path: Path_, *, base: Path_ | None = None, threads: int = 0) -> None:
        super().__init__()
        self.path = Path(path)
        self.base = None if base is None else os.fspath(base)
        self.threads = threads
        self.load_id = str(uuid.uuid4())
        self._found: described.Description | None = None

    def reset(self, checkpoint_id: Path_ | None = None) -> None:
        if checkpoint_id:
            self.path = Path(checkpoint_id)
        self.load_id = str(uuid.uuid4())
        self._found = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = described.read(self.path, kwargs.get("rank"))
        found.metadata.storage_meta = StorageMeta(checkpoint_id=self.path, load_id=self.load_id)
        self._found = found
        return found.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        if self._found is None or self._found.metadata is not metadata:
            raise ValueError(f"{self.path}: this metadata was not read from there")

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        found = self._found
        if found is None:
            raise ValueError(f"{self.path}: its metadata was not read yet")
        by_file: dict[str, list[tuple[ReadItem, str]]] = {}
        for item in plan.items:
            place = found.metadata.storage_data[item.storage_index]
            if isinstance(place, Value) != (item.type == LoadItemType.BYTE_IO):
                raise ValueError(f"{item.storage_index.fqn} is a tensor here and a value there")
            if isinstance(place, Value):
                planner.load_bytes(item, place.as_torch_save(item.storage_index.fqn))
            else:
                by_file.setdefault(place.file, []).append((item, place.name))
        bases = self._bases(found)
        for file, items in by_file.items():
            with safe_open(self.path / file, "pt", base=bases, threads=self.threads) as container:
                for item, name in items:
                    target = planner.resolve_tensor(item).detach()
                    _read(container, item, name, found.metadata, target)
                    planner.commit_tensor(item, target)
        return _done(None)

    def _bases(self, found: described.Description) -> list[str] | None:
        if self.base is not None:
            return described.containers(self.base)
        # Containers may also stand on other ranks' containers of the base, never on their own.
        bases = [file for base in found.bases for file in described.containers(base, self.path)]
        return bases or None

    @property
    def checkpoint_id(self) -> Path_:
        """The folder."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path_) -> bool:
        return _is_path(checkpoint_id)


class LoomStream(StreamTransformExtension):
    """Packs each item of torch's own `FileSystemWriter(path, _extensions=[LoomStream()])`.

    It sees one item at a time, without a base, so a BF16 checkpoint shrinks to about two thirds and
    no difference is ever stored. Prefer :class:`LoomStorageWriter`. To read, torch must know it:
    `FileSystemReader(path, _extension_registry=registry)` after `registry.register(LoomStream)`.
    """

    @staticmethod
    def registry_name() -> str:
        return "stream.deltaloom"

    @staticmethod
    def from_descriptor(version: str) -> LoomStream:
        if version.partition(".")[0] != "1":
            raise ValueError(f"stream.deltaloom has version {version!r}; this deltaloom reads version 1")
        return LoomStream()

    def get_descriptor(self) -> str:
        return f"{self.registry_name()}/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return _Packing(output)

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            packed, item = Path(folder, "item.loom"), Path(folder, "item")
            packed.write_bytes(input.read())
            unpack(packed, item)
            return io.BytesIO((item / _ITEM).read_bytes())


_ITEM = "item.pt"


class _Packing(io.BytesIO):
    """Collects an item and writes its container when it is closed."""

    def __init__(self, output: IO[bytes]) -> None:
        super().__init__()
        self._output: IO[bytes] | None = output

    def close(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            # A folder holds any file: one that is no archive of torch is stored as its bytes.
            with tempfile.TemporaryDirectory() as folder:
                item, packed = Path(folder, "item"), Path(folder, "item.loom")
                item.mkdir()
                (item / _ITEM).write_bytes(self.getbuffer())
                pack(item, packed)
                output.write(packed.read_bytes())
        super().close()


def _read(container: Any, item: ReadItem, name: str, metadata: Metadata, target: torch.Tensor) -> None:
    """Decodes the part of a tensor that an item asks for into `target`."""
    fqn = item.storage_index.fqn
    stored: Any = metadata.state_dict_metadata[fqn]
    lengths, offsets = list(item.lengths), list(item.storage_offsets)
    if list(target.shape) != lengths:
        raise ValueError(f"{fqn}: the state has shape {list(target.shape)}, where {lengths} are read")
    part = container.get_slice(name)
    shape = list(part.get_shape())
    ends = [offset + length for offset, length in zip(offsets, lengths, strict=True)]
    if len(shape) != len(ends) or any(end > size for end, size in zip(ends, shape, strict=True)):
        raise ValueError(f"{fqn}: the container has shape {shape}, not that of the metadata")
    whole = lengths == shape
    direct = (
        target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype == stored.properties.dtype
        and container.info(name).dtype == part.get_dtype()
        and lengths[1:] == shape[1:]
        and target.numel() > 0
    )
    if direct:
        rows = None if whole else slice(offsets[0], ends[0])
        container.read_into(name, target.reshape(-1).view(torch.uint8).numpy(), rows)
    elif whole:
        target.copy_(container.get_tensor(name))
    else:
        target.copy_(part[tuple(slice(start, end) for start, end in zip(offsets, ends, strict=True))])


def _encoded(planner: SavePlanner, item: WriteItem) -> Any:
    """A value as JSON. Planners hand out `torch.save` of it, made a moment ago in this process."""
    try:
        data = planner.resolve_data(item)
        assert isinstance(data, io.BytesIO)
        data.seek(0)
        value = torch.load(data, weights_only=True)
    except Exception as error:
        raise TypeError(f"{item.index.fqn} cannot be stored without pickle ({HINT})") from error
    return encode(value, where=item.index.fqn)


def _name(item: WriteItem) -> str:
    """Name of a tensor in its container: the plain name of one that is whole, so that any file of
    weights can be its base; else with the offsets."""
    data = item.tensor_data
    assert data is not None
    if list(data.chunk.sizes) == list(data.size):
        return str(item.index.fqn)
    return f"{item.index.fqn}@{','.join(map(str, data.chunk.offsets))}"


def _remove_leftovers(folder: Path, results: list[list[WriteResult]]) -> None:
    places = [result.storage_data for rank in results for result in rank]
    written = {place.file for place in places if isinstance(place, Part)}
    for old in folder.glob("rank-*.loom"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    for alone in folder.glob("deltaloom-dcp-*.json"):
        alone.unlink(missing_ok=True)


def _write_whole(path: Path, text: str, sync: bool) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    new.replace(path)
    if sync and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _same_place(base: str, path: Path) -> bool:
    return os.path.realpath(base) == os.path.realpath(path)


def _is_path(checkpoint_id: Path_) -> bool:
    return "://" not in os.fspath(checkpoint_id)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
