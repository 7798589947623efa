"""The examples of docs/python-training.md and examples/python do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import tiny  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

ROOT = Path(__file__).resolve().parents[4]
GUIDE = ROOT / "docs" / "python-training.md"
EXAMPLES = ROOT / "examples" / "python"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside the tests")


def sections() -> list[tuple[str, str]]:
    """The Python blocks of the guide, with their headings."""
    found = []
    for part in GUIDE.read_text(encoding="utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        assert blocks, part[:60]
        found.append((part.partition("\n")[0], "\n".join(blocks)))
    return found


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny.llama()
    base.save_pretrained("base-model")
    for title, code in sections():
        model = tiny.tuned(base)
        names: dict[str, Any] = {
            "model": model,
            "tokenizer": tiny.tokenizer(),
            "dataset": tiny.Rows(),
            "optimizer": torch.optim.AdamW(model.parameters()),
        }
        if title == "Lightning":
            pytest.importorskip("lightning", reason="lightning is not installed")
            from test_lightning import Module

            names.update(module=Module(), loader=DataLoader(tiny.Rows(), batch_size=2))
            save_file(names["module"].state_dict(), "base.safetensors")
        exec(compile(code, f"{GUIDE.name}: {title}", "exec"), names)


def test_the_training_script_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(steps: int) -> str:
        command = [sys.executable, str(EXAMPLES / "train.py"), "--steps", str(steps)]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "step   10" in run(10)
    again = run(20)
    assert all(f"step {step:4}" in again for step in (5, 10, 15, 20))


def test_the_notebook_runs() -> None:
    notebook = json.loads((EXAMPLES / "one-base-many-models.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and all(cell["outputs"] == [] for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
