"""Language models: the bundled one, written by the program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import deltaloom
from deltaloom.lm import Model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert deltaloom.main(["demo", "--write", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(demo: Path) -> Iterator[Model]:
    (container,) = demo.rglob("*pirate*.loom")
    yield Model.open(_base(demo), tenants={"pirate": container}, threads=1)


def _base(demo: Path) -> Path:
    return next(path.parent for path in demo.rglob("config.json"))


def test_text(model: Model) -> None:
    text = model.generate("Once upon a time", max_tokens=24)
    assert len(text) > 10
    assert model.generate("Once upon a time", max_tokens=24) == text
    assert "".join(model.stream("Once upon a time", max_tokens=24)) == text
    assert model.generate("Once upon a time", max_tokens=24, tenant="pirate") != text
    assert model.tenants == ("pirate",)
    with pytest.raises(KeyError):
        model.generate("Once", tenant="nobody")
    with pytest.raises(ValueError):
        model.generate("Once", temperature=-1.0)
    with pytest.raises(TypeError, match="temprature"):
        model.generate("Once", temprature=1.0)  # type: ignore[call-arg]


def test_a_stream_may_be_left(model: Model) -> None:
    pieces = model.stream("Once upon a time", max_tokens=200)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert model.generate("Once", max_tokens=1) is not None


def test_perplexity(model: Model) -> None:
    text = "Once upon a time there was a little rabbit who lived in a garden."
    report = model.perplexity(text)
    assert report.tokens > 5 and report.perplexity > 1
    assert model.perplexity(model.encode(text)).loss == report.loss
    assert model.perplexity(text, tenant="pirate").loss != report.loss
    with pytest.raises(ValueError):
        model.perplexity([1])
    with pytest.raises(ValueError):
        model.perplexity([10**6, 10**6])


def test_a_container_on_its_base(demo: Path, model: Model) -> None:
    (container,) = demo.rglob("*pirate*.loom")
    opened = Model.open(container, base=_base(demo), threads=1)
    told = opened.generate("Once upon a time", max_tokens=12)
    assert told == model.generate("Once upon a time", max_tokens=12, tenant="pirate")
    with pytest.raises(OSError):
        Model.open(demo / "none")
