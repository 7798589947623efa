"""Finds a base model in the cache of Hugging Face.

A base may be given as `hf://org/name`, `hf://org/name@revision`, or as the folder of a model or
of a snapshot in the cache. Only `hf://` may download, and only what is not in the cache yet and
when `HF_HUB_OFFLINE` is not set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SCHEME = "hf://"
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def resolve(base: Any) -> Any:
    """Returns `base` with every name of a model replaced by the folder of its snapshot.

    Args:
        base: A base as all functions take it: a path, a sequence of paths, or anything else, which
            is returned unchanged.

    Raises:
        FileNotFoundError: A model is not in the cache and cannot be downloaded now.
        ImportError: A name begins with `hf://` and huggingface_hub is not installed.
        ValueError: A name is not of the form `hf://org/name@revision`.
    """
    if isinstance(base, (list, tuple)):
        return [resolve(one) for one in base]
    if isinstance(base, str) and base.startswith(SCHEME):
        name, _, revision = base.removeprefix(SCHEME).partition("@")
        return snapshot(name, revision or None, download=True)
    if isinstance(base, (str, os.PathLike)) and not isinstance(base, bytes):
        return _of_cache_folder(os.fspath(base)) or base
    return base


def resolve_model(model: str | os.PathLike[str]) -> str:
    """Returns the local folder or file of a model: a path, `hf://org/name`, or `org/name` if the
    cache has it.

    Raises:
        FileNotFoundError: It is neither a path nor in the cache.
    """
    name = os.fspath(model)
    if name.startswith(SCHEME):
        return str(resolve(name))
    if os.path.exists(name):
        return _of_cache_folder(name) or name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        repository, _, revision = name.partition("@")
        return snapshot(repository, revision or None, download=False)
    raise FileNotFoundError(2, "no such file or folder", name)


def snapshot(name: str, revision: str | None, *, download: bool) -> str:
    """Returns the folder of a model's snapshot in the cache.

    Args:
        name: `org/name`.
        revision: A branch, tag or commit. None for the main branch.
        download: Whether it may be downloaded if the cache does not have it.
    """
    organisation, _, model = name.partition("/")
    if not organisation or not model or "/" in model:
        raise ValueError(f"{SCHEME}{name}: expected {SCHEME}org/name or {SCHEME}org/name@revision")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ImportError(f"{name} is a model of Hugging Face: pip install huggingface_hub") from error
    try:
        return str(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except FileNotFoundError as error:
        if not download or hub.is_offline_mode():
            hint = "" if download else f"; {SCHEME}{name} downloads it"
            what = f"the cache of Hugging Face does not have revision {revision or 'main'} of it{hint}"
            raise FileNotFoundError(2, what, name) from error
    return str(hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED))


def _of_cache_folder(path: str) -> str | None:
    """The newest snapshot of a model whose folder in the cache is `path`, if it is such a folder."""
    folder = Path(path)
    snapshots = folder / "snapshots"
    if not folder.name.startswith("models--") or not snapshots.is_dir():
        return None
    main = folder / "refs" / "main"
    if main.is_file():
        named = snapshots / main.read_text(encoding="ascii", errors="replace").strip()
        if named.is_dir():
            return str(named)
    found = [entry for entry in snapshots.iterdir() if entry.is_dir()]
    return str(found[0]) if len(found) == 1 else None
