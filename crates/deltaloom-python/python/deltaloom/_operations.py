"""The operations of the program: files and folders in, files and reports out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from deltaloom import _lib
from deltaloom._files import Preset
from deltaloom._inputs import Base, Path, bases_of, path_of, texts_of
from deltaloom._progress import Progress, reporting
from deltaloom._reports import (
    DiffReport,
    LineageReport,
    PackReport,
    SearchReport,
    UnpackReport,
    VerifyReport,
)

__all__ = ["diff", "find_base", "inspect", "lineage", "pack", "unpack", "verify"]


def _paths(paths: Path | Iterable[Path] | None) -> list[str]:
    if paths is None:
        return []
    if isinstance(paths, str | bytes | os.PathLike):
        return [path_of(paths)]
    return [path_of(path) for path in paths]


def _optional(path: Path | None) -> str | None:
    return None if path is None else path_of(path)


def pack(
    source: Path,
    target: Path,
    *,
    base: Base | None = None,
    adapter: Path | Iterable[Path] | None = None,
    base_dir: Path | None = None,
    exclude: Iterable[str] = (),
    meta: Mapping[str, Any] | None = None,
    preset: Preset = "default",
    threads: int = 0,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> PackReport:
    """Packs a file, or a folder of Hugging Face with everything in it, byte for byte.

    Args:
        source: A file of weights, or a folder.
        target: The container to write. It appears when it is complete.
        base: What the reader will have.
        adapter: LoRA adapters that were merged into it, in turn.
        base_dir: A folder to choose the best base from, instead of `base`.
        exclude: Patterns of files and folders to leave out.
        meta: Texts for the container, shown by `inspect`.
        preset: "max" takes longer and is smaller.
        threads: How many; 0 means one per core. They do not change the result.
        overwrite: Replace an existing file.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        ExistsError: The target exists.
        BaseMismatchError: No file of `base_dir` is similar enough.
        CorruptError: A file is damaged or of another kind.
        OSError: A file cannot be read or written.
    """
    with reporting(progress, "packing") as report:
        json = _lib.pack(
            path_of(source),
            path_of(target),
            bases_of(base),
            _paths(adapter),
            _optional(base_dir),
            list(exclude),
            texts_of(meta),
            preset,
            threads,
            overwrite,
            report,
        )
    return PackReport.from_json(json)


def unpack(
    container: Path,
    target: Path,
    *,
    base: Base | None = None,
    adapter: Path | Iterable[Path] | None = None,
    base_dir: Path | None = None,
    in_place: bool = False,
    check: Literal["changed", "all", "one"] = "changed",
    threads: int = 0,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> UnpackReport:
    """Restores the files of a container byte for byte, each checked by its digest.

    Args:
        container: The container.
        target: The file or folder to write. It appears when it is complete. In place: the base,
            which becomes the fine-tune.
        base: What it was packed against. In place: other bases than the target.
        adapter: Adapters that it needs.
        base_dir: A folder to look for missing bases in.
        in_place: Change the base itself. After a crash, the same call finishes it.
        check: In place: which tensors are proven before the first write. "one" is fast and trusts
            the base.
        threads: How many; 0 means one per core.
        overwrite: Replace existing files. In place: change a file that other names lead to.
        progress: True for a bar, or a function of the bytes that are done and their total.

    Raises:
        BaseMismatchError: The bases are not those that it needs.
        CorruptError: The container is damaged.
        ExistsError: The target exists.
        InPlaceError: The file cannot be changed in place, or the change did not finish.
        OSError: A file cannot be read or written.
    """
    opened, adapters = bases_of(base), _paths(adapter)
    with reporting(progress, "unpacking") as report:
        if in_place:
            json = _lib.unpack_in_place(
                path_of(container), path_of(target), opened, adapters, check, threads, overwrite, report
            )
        else:
            json = _lib.unpack(
                path_of(container),
                path_of(target),
                opened,
                adapters,
                _optional(base_dir),
                threads,
                overwrite,
                report,
            )
    return UnpackReport.from_json(json)


def verify(
    container: Path,
    *,
    base: Base | None = None,
    adapter: Path | Iterable[Path] | None = None,
    base_dir: Path | None = None,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> VerifyReport:
    """Checks every checksum of a container and, with its bases, every digest.

    The report is false if there is a fault, and lists all of them.

    Raises:
        CorruptError: Not even the index can be read.
        OSError: The file cannot be read.
    """
    with reporting(progress, "verifying") as report:
        json = _lib.verify(
            path_of(container), bases_of(base), _paths(adapter), _optional(base_dir), threads, report
        )
    return VerifyReport.from_json(json)


def diff(
    a: Path,
    b: Path,
    *,
    base: Base | None = None,
    adapter: Path | Iterable[Path] | None = None,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> DiffReport:
    """Compares two files or folders tensor by tensor: changed weights, ULPs, relative L2.

    Args:
        a: The first.
        b: The second.
        base: What they were packed against, if they are containers.
        adapter: Adapters that they need.
        threads: How many; 0 means one per core.
        progress: True for a bar, or a function of the bytes that are done and their total.
    """
    with reporting(progress, "comparing") as report:
        json = _lib.diff(path_of(a), path_of(b), bases_of(base), _paths(adapter), threads, report)
    return DiffReport.from_json(json)


def inspect(container: Path) -> PackReport:
    """Describes a container from its index. Needs no base and decodes nothing."""
    return PackReport.from_json(_lib.inspect(path_of(container)))


def lineage(
    checkpoint: Path,
    ancestors: Base,
    *,
    threads: int = 0,
    progress: bool | Progress | None = None,
) -> LineageReport:
    """Finds how each tensor came from those of other checkpoints: low rank, blends, rounding..."""
    with reporting(progress, "comparing") as report:
        json = _lib.lineage(path_of(checkpoint), bases_of(ancestors), threads, report)
    return LineageReport.from_json(json)


def find_base(
    checkpoint: Path, folder: Path, *, threads: int = 0, progress: bool | Progress | None = None
) -> SearchReport:
    """Compares a checkpoint with every file of weights under a folder, by samples."""
    with reporting(progress, "searching") as report:
        json = _lib.find_base(path_of(checkpoint), path_of(folder), threads, report)
    return SearchReport.from_json(json)
