"""Paths and bases as users write them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union, runtime_checkable

from deltaloom._hub import resolve

if TYPE_CHECKING:
    from deltaloom import _lib

__all__ = ["Base", "Path", "bases_of", "path_of", "texts_of"]

Path: TypeAlias = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


@runtime_checkable
class OpenBase(Protocol):
    """An open file or step that can be a base: a Container, or a Step of a Series."""

    def _as_base(self) -> _lib.Reader: ...


Base: TypeAlias = Union[Path, Mapping[str, Any], OpenBase, Sequence["Base"]]
"""A path, a mapping of tensors, a Container, a Step of a Series, or a list of these."""

def path_of(path: Path) -> str:
    """A path as text. `hf://org/name@revision` is a folder in the cache of Hugging Face."""
    text = os.fsdecode(path)
    if "\0" in text:
        raise ValueError("a path has no zero character")
    return str(resolve(text))


def bases_of(base: Base | None) -> list[str | _lib.Tensors | _lib.Reader]:
    """The bases of a call, as the extension module takes them."""
    if base is None:
        return []
    if isinstance(base, str | bytes | os.PathLike):
        return [path_of(base)]
    if isinstance(base, Mapping):
        from deltaloom._files import checkpoint_of, framework_of

        return [checkpoint_of(framework_of(base), base, "base.safetensors", None)] if base else []
    if isinstance(base, OpenBase):
        return [base._as_base()]
    if isinstance(base, Iterable):
        return [one for item in base for one in bases_of(item)]
    kind = type(base).__name__
    raise TypeError(f"a base is a path, a mapping of tensors, a Container, a Step or a list of these, not {kind}")


def texts_of(texts: Mapping[str, Any] | None) -> dict[str, str]:
    """Texts by name. Numbers become texts."""
    found: dict[str, str] = {}
    for name, text in (texts or {}).items():
        if not isinstance(name, str) or not isinstance(text, str | int | float):
            raise TypeError(f"texts have a name and a text or number, not {name!r}: {type(text).__name__}")
        found[name] = str(text)
    return found
