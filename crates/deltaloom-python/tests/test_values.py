"""Values as JSON and back, without pickle."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest

from deltaloom._values import decode, encode, loads

VALUES = [
    None,
    True,
    0,
    -(1 << 70),
    1.5,
    -0.0,
    5e-324,
    math.inf,
    -math.inf,
    "",
    "ü\0\ud800",
    b"\0\xff",
    bytearray(b"x"),
    1 + 2j,
    [],
    (),
    {},
    set(),
    [1, [2, (3, {"a": None})]],
    {1: "a", "1": "b", (2, 3): [4], None: b""},
    {"float": "nan"},
    {"other": "x"},
    OrderedDict([("b", 1), ("a", 2)]),
    {1, 2},
    frozenset({"x"}),
]


def through(value: Any) -> Any:
    return decode(loads(json.dumps(encode(value), allow_nan=False), where="test"))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_with_its_type(value: Any) -> None:
    back = through(value)
    assert back == value and type(back) is type(value)
    assert repr(back) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(through(math.nan))


class Text(str):
    """A text of another type."""


@pytest.mark.parametrize(
    "value", [object(), print, Text("x"), defaultdict(int), namedtuple("P", "x")(1), range(3), [iter(())]], ids=repr
)
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="without pickle"):
        encode(value)


def test_messages_name_the_place() -> None:
    with pytest.raises(TypeError, match=r"^state\.a\.1\.b holds a builtins\.object,"):
        encode({"a": [0, {"b": object()}]}, where="state")


def test_others_are_kept_by_name() -> None:
    kept: dict[str, Any] = {}

    def keep(value: object, place: str) -> str | None:
        if not isinstance(value, range):
            return None
        kept[place] = value
        return place

    encoded = encode({"a": [range(3)]}, where="x", other=keep)
    assert kept == {"x.a.0": range(3)}
    assert decode(encoded, other=kept.__getitem__) == {"a": [range(3)]}
    with pytest.raises(ValueError, match="missing"):
        decode({"other": "missing"}, other=kept.__getitem__)
    with pytest.raises(ValueError, match="unknown kind"):
        decode(encoded["dict"][0][1][0])  # type: ignore[index, call-overload]


def test_depth_is_bounded() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        encode(deep)
    with pytest.raises(ValueError, match="nested"):
        decode(deep)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": 2},
        {"pickle": "gASV"},
        {"float": "1.5"},
        {"float": []},
        {"complex": [1]},
        {"complex": ["a", "b"]},
        {"bytes": "ab*c"},
        {"bytes": 1},
        {"tuple": 1},
        {"tuple": {}},
        {"set": [[1]]},
        {"dict": {}},
        {"dict": [1]},
        {"dict": [[1, 2, 3]]},
        {"dict": [[[1], 2]]},
        {"other": "x"},
    ],
    ids=repr,
)
def test_other_forms_are_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        decode(value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", "1e"])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="test"):
        loads(text, where="test")
