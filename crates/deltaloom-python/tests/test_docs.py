"""Every example of docs/python.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs/python.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the page is only in the repository")
def test_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) > 4
    scope: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), scope)
    assert scope["code"] == 0
    assert scope["rows"].shape == (10, 128)
    assert scope["future"].result().step == 200
