"""Plain Python values as JSON and back, exactly, without pickle.

What JSON has stands for itself: None, bool, int, str, finite floats and lists. Every other value is
an object with one member, which names its type. A value of any other type is refused, so nothing is
ever stored that cannot come back, and nothing that is read can run code.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What :mod:`json` reads and writes."""

HINT = "use numbers, texts, bytes, lists, tuples, dicts or tensors"

MAX_DEPTH = 64
"""How deep values may be nested."""

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


Keep = Callable[[object, str], str | None]
"""Gets a value that is no JSON and its place, such as `optimizer_states.0.lr`. Returns the name
under which the caller keeps it, or None."""


def encode(value: object, *, where: str = "value", other: Keep | None = None) -> Json:
    """Returns `value` as JSON.

    Args:
        value: None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict or set of
            such values, or a torch dtype, device or size.
        where: Its place, for messages and `other`.
        other: Called with every value of another type. :func:`decode` gets the name that it returns.

    Raises:
        TypeError: The value, or one in it, has a type that cannot be stored.
        ValueError: It is nested too deeply.
    """
    return _encode(value, where, other, 0)


def _encode(value: object, where: str, other: Keep | None, depth: int) -> Json:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")

    def each(values: Any) -> list[Any]:
        return [_encode(item, f"{where}.{i}", other, depth + 1) for i, item in enumerate(values)]

    def pair(key: object, held: object) -> list[Any]:
        return [_encode(key, where, None, depth + 1), _encode(held, f"{where}.{key}", other, depth + 1)]

    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value  # type: ignore[return-value]
    if isinstance(value, float) and kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex) and kind is complex:
        return {"complex": each([value.real, value.imag])}
    if isinstance(value, (bytes, bytearray)) and kind in (bytes, bytearray):
        return {kind.__name__: base64.b64encode(value).decode("ascii")}
    if isinstance(value, list) and kind is list:
        return each(value)
    if isinstance(value, tuple) and kind is tuple:
        return {"tuple": each(value)}
    if isinstance(value, (set, frozenset)) and kind in (set, frozenset):
        return {kind.__name__: each(value)}
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        return {kind.__name__: [pair(key, held) for key, held in value.items()]}
    if kind.__module__ == "torch":
        if kind.__name__ == "dtype":
            return {"torch.dtype": str(value).removeprefix("torch.")}
        if kind.__name__ == "device":
            return {"torch.device": str(value)}
        if kind.__name__ == "Size":
            return {"torch.Size": list(value)}  # type: ignore[call-overload]
    kept = other(value, where) if other is not None else None
    if kept is not None:
        return {"other": kept}
    raise TypeError(
        f"{where} holds a {kind.__module__}.{kind.__qualname__}, which cannot be stored without pickle ({HINT})"
    )


def decode(value: Json, *, where: str = "value", other: Callable[[str], object] | None = None) -> Any:
    """Returns the value that :func:`encode` was given.

    Args:
        value: What :func:`encode` returned, after JSON.
        where: What messages call it.
        other: Called with each name that the `other` of :func:`encode` returned.

    Raises:
        ValueError: It is none of the forms that :func:`encode` makes.
    """
    return _decode(value, where, other, 0)


def _decode(value: Json, where: str, other: Callable[[str], object] | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")

    def each(values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise ValueError(f"{where}: expected a list, found {_short(values)}")
        return [_decode(item, where, other, depth + 1) for item in values]

    if isinstance(value, list):
        return each(value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"{where}: expected one member, found {_short(value)}")
    kind, held = next(iter(value.items()))
    try:
        match kind:
            case "float":
                return _NONFINITE[held]
            case "complex":
                real, imaginary = each(held)
                return complex(real, imaginary)
            case "bytes":
                return base64.b64decode(held, validate=True)
            case "bytearray":
                return bytearray(base64.b64decode(held, validate=True))
            case "tuple":
                return tuple(each(held))
            case "set":
                return set(each(held))
            case "frozenset":
                return frozenset(each(held))
            case "dict" | "OrderedDict":
                make = dict if kind == "dict" else OrderedDict
                return make(_pair(each(pair), where) for pair in _items(held, where))
            case "torch.dtype" | "torch.device" | "torch.Size":
                return _of_torch(kind, held)
            case "other" if other is not None and isinstance(held, str):
                return other(held)
    except (KeyError, TypeError, binascii.Error, RuntimeError, OverflowError) as error:
        raise ValueError(f"{where}: {_short(value)} is not a value ({error})") from error
    raise ValueError(f"{where}: unknown kind of value {_short(kind)}")


def _items(held: Json, where: str) -> list[Any]:
    if not isinstance(held, list):
        raise ValueError(f"{where}: expected a list, found {_short(held)}")
    return held


def _pair(pair: list[Any], where: str) -> tuple[Any, Any]:
    if len(pair) != 2:
        raise ValueError(f"{where}: expected a key and a value, found {_short(pair)}")
    return pair[0], pair[1]


def _of_torch(kind: str, held: Any) -> object:
    import torch

    if kind == "torch.dtype":
        dtype = getattr(torch, held, None) if isinstance(held, str) else None
        if not isinstance(dtype, torch.dtype):
            raise TypeError("no dtype of torch")
        return dtype
    if kind == "torch.device":
        return torch.device(held)
    if not isinstance(held, list) or not all(type(size) is int for size in held):
        raise TypeError("no size of torch")
    return torch.Size(held)


def loads(text: str | bytes, *, where: str) -> Json:
    """Parses JSON.

    Raises:
        ValueError: It is none, or it is nested too deeply.
    """
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from error
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
