"""A short run of tools/py_fuzz.py, the same every time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

TOOL = Path(__file__).parents[3] / "tools" / "py_fuzz.py"


def test_damaged_bytes_give_documented_exceptions(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("py_fuzz", TOOL)
    assert spec is not None and spec.loader is not None
    py_fuzz: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(py_fuzz)
    fuzz = py_fuzz.Fuzz(tmp_path, seed=7)
    for _ in range(800):
        fuzz.once()
    assert fuzz.ended.total() == 800
    calls = {name.split(":")[0] for name in fuzz.ended}
    assert calls == {"load", "load_file", "open", "series", "as_base", "operations"}
    assert {"load: CorruptError", "load: accepted", "series: CorruptError"} <= set(fuzz.ended)
