from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from typing_extensions import Buffer

__all__ = [
    "Model",
    "Reader",
    "Series",
    "Tensors",
    "diff",
    "drain",
    "find_base",
    "inspect",
    "lineage",
    "pack",
    "pack_tensors",
    "pack_tensors_to_bytes",
    "run",
    "snapshot",
    "unpack",
    "unpack_in_place",
    "verify",
    "version",
]

_Report = Callable[[int, int], None]
_Bases = Sequence[str | Tensors | Reader]

@final
class Tensors:
    def __new__(
        cls,
        name: str,
        tensors: Sequence[tuple[str, str, Sequence[int], Buffer | Callable[[int, int], Buffer]]],
        metadata: Mapping[str, str],
    ) -> Tensors: ...

@final
class Reader:
    @staticmethod
    def open(path: str, bases: _Bases, folder: str | None, threads: int) -> Reader: ...
    @staticmethod
    def of_bytes(data: Buffer, bases: _Bases, threads: int) -> Reader: ...
    def tensors(self) -> list[tuple[str, str, list[int], int, str]]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def files(self) -> list[str]: ...
    def file(self, path: str, threads: int) -> bytes: ...
    def read(
        self, wanted: Sequence[tuple[int, Buffer]], verify: bool, threads: int, report: _Report | None
    ) -> None: ...
    def read_rows(self, number: int, rows: tuple[int, int], out: Buffer, threads: int) -> None: ...
    def changes(
        self, number: int, old: Buffer, verify: bool, threads: int
    ) -> tuple[int, bytes, bytes] | None: ...
    def describe(self, number: int) -> str | None: ...

@final
class Series:
    @staticmethod
    def init(location: str, keyframe_every: int, max_chain: int) -> Series: ...
    @staticmethod
    def open(location: str, branch: str | None) -> Series: ...
    @property
    def location(self) -> str: ...
    def add(
        self,
        model: str | Tensors,
        step: int | None,
        optimizer: str | Tensors | None,
        previous: Tensors | None,
        meta: Mapping[str, str],
        keyframe: bool,
        force: bool,
        rewind: bool,
        preset: str,
        threads: int,
        report: _Report | None,
    ) -> str: ...
    def get(
        self,
        step: int,
        target: str,
        part: str,
        threads: int,
        overwrite: bool,
        report: _Report | None,
    ) -> str: ...
    def reader(self, step: int, part: str, threads: int) -> Reader: ...
    def steps(self, last: int | None) -> str: ...
    def find(self, step: int) -> str | None: ...
    def summary(self) -> str: ...
    def verify(self, deep: bool, threads: int, report: _Report | None) -> str: ...
    def prune(self, keep: str, dry_run: bool, threads: int, report: _Report | None) -> str: ...
    def repack(
        self, options: tuple[int, int] | None, preset: str, threads: int, report: _Report | None
    ) -> str: ...
    def gc(self, grace_seconds: int, dry_run: bool) -> str: ...

@final
class Model:
    @staticmethod
    def open(path: str, tenants: Mapping[str, str], threads: int) -> Model: ...
    def generate(
        self,
        prompt: str,
        tenant: str | None,
        options: Mapping[str, Any],
        each: Callable[[str], None] | None,
        threads: int,
    ) -> str: ...
    def perplexity(
        self,
        text: str | None,
        ids: Sequence[int],
        tenant: str | None,
        window: int | None,
        threads: int,
        report: _Report | None,
    ) -> str: ...
    def encode(self, text: str, tenant: str | None) -> list[int]: ...

def pack(
    source: str,
    target: str,
    bases: _Bases,
    adapters: Sequence[str],
    folder: str | None,
    exclude: Sequence[str],
    texts: Mapping[str, str] | None,
    preset: str,
    threads: int,
    overwrite: bool,
    report: _Report | None,
) -> str: ...
def pack_tensors(
    tensors: Tensors,
    target: str,
    bases: _Bases,
    preset: str,
    threads: int,
    overwrite: bool,
    report: _Report | None,
) -> str: ...
def pack_tensors_to_bytes(tensors: Tensors, bases: _Bases, preset: str, threads: int) -> bytes: ...
def unpack(
    container: str,
    target: str,
    bases: _Bases,
    adapters: Sequence[str],
    folder: str | None,
    threads: int,
    overwrite: bool,
    report: _Report | None,
) -> str: ...
def unpack_in_place(
    container: str,
    base: str,
    bases: _Bases,
    adapters: Sequence[str],
    check: str,
    threads: int,
    overwrite: bool,
    report: _Report | None,
) -> str: ...
def verify(
    container: str,
    bases: _Bases,
    adapters: Sequence[str],
    folder: str | None,
    threads: int,
    report: _Report | None,
) -> str: ...
def diff(
    a: str, b: str, bases: _Bases, adapters: Sequence[str], threads: int, report: _Report | None
) -> str: ...
def inspect(container: str) -> str: ...
def lineage(checkpoint: str, ancestors: _Bases, threads: int, report: _Report | None) -> str: ...
def find_base(checkpoint: str, folder: str, threads: int, report: _Report | None) -> str: ...
def run(words: Sequence[str], start: Sequence[str], signals: bool) -> int: ...
def version() -> str: ...
def snapshot(
    waiting: str, checkpoint: str, step: int, meta: Mapping[str, str], exclude: Sequence[str]
) -> None: ...
def drain(series: Series, waiting: str, preset: str, threads: int) -> list[int]: ...
