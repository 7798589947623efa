"""Every Python example of docs/python.md and of the README runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/python.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the pages are only in the repository")


def examples_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run(examples: list[str], page: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(page), "exec"), scope)
    return scope


def test_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = examples_of(PAGE)
    assert len(examples) > 4
    scope = run(examples, PAGE)
    assert scope["code"] == 0
    assert scope["rows"].shape == (10, 128)
    assert scope["future"].result().step == 200


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The page makes the weights that both use.
    weights, *_ = examples_of(PAGE)
    examples = examples_of(ROOT / "README.md")
    assert examples
    scope = run([weights, *examples], ROOT / "README.md")
    assert scope["weights"].keys() == scope["tuned"].keys()
    assert scope["weights"]["up"].tobytes() == scope["tuned"]["up"].tobytes()
