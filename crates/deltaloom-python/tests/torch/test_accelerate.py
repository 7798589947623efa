"""States of an Accelerator: the models go to a series and come from it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import tiny  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from deltaloom import Series  # noqa: E402
from deltaloom.accelerate import register  # noqa: E402


def prepared(count: int = 1) -> tuple[Accelerator, list[torch.nn.Module], list[torch.optim.Optimizer]]:
    accelerator = Accelerator(cpu=True)
    models = [tiny.llama(seed=i) for i in range(count)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    ready = accelerator.prepare(*models, *optimizers)
    return accelerator, list(ready[:count]), list(ready[count:])


def train(accelerator: Accelerator, models: list[torch.nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            accelerator.backward(model(tiny.ids(seed=step), labels=tiny.ids(seed=step)).loss)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("count", [1, 2])
def test_a_state_resumes_to_the_same_bits(tmp_path: Path, count: int) -> None:
    accelerator, models, optimizers = prepared(count)
    register(accelerator, tmp_path / "series")
    train(accelerator, models, optimizers)
    accelerator.save_state(str(tmp_path / "state-5"))
    train(accelerator, models, optimizers)
    accelerator.save_state(str(tmp_path / "state-10"))
    assert not [path for path in (tmp_path / "state-5").iterdir() if path.suffix == ".safetensors"]
    assert (tmp_path / "state-5" / "optimizer.bin").exists()
    assert [step.step for step in Series.open(tmp_path / "series").steps()] == [0, 1]

    again, others, states = prepared(count)
    register(again, str(tmp_path / "series"))
    again.load_state(str(tmp_path / "state-5"))
    train(again, others, states)
    for model, other in zip(models, others, strict=True):
        for (name, value), same in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert tiny.same_bits(value, same), name


def test_handles_remove_the_hooks(tmp_path: Path) -> None:
    accelerator, models, _ = prepared()
    saving, loading = register(accelerator, tmp_path / "series")
    accelerator.save_state(str(tmp_path / "with"))
    saving.remove()
    loading.remove()
    accelerator.save_state(str(tmp_path / "without"))
    assert (tmp_path / "without" / "model.safetensors").exists()
    assert len(Series.open(tmp_path / "series").steps()) == 1
    # A state of before the series still loads.
    register(accelerator, tmp_path / "series")
    before = {name: value.clone() for name, value in models[0].state_dict().items()}
    accelerator.load_state(str(tmp_path / "without"))
    assert all(tiny.same_bits(value, before[name]) for name, value in models[0].state_dict().items())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "deltaloom step", "version": 1, "step": "0", "models": 1}'])
def test_a_broken_description_is_refused(tmp_path: Path, text: str) -> None:
    accelerator, _, _ = prepared()
    register(accelerator, tmp_path / "series")
    accelerator.save_state(str(tmp_path / "state"))
    (tmp_path / "state" / "deltaloom-step.json").write_text(text)
    with pytest.raises(ValueError, match="deltaloom-step"):
        accelerator.load_state(str(tmp_path / "state"))


def test_another_number_of_models_is_refused(tmp_path: Path) -> None:
    accelerator, _, _ = prepared(2)
    register(accelerator, tmp_path / "series")
    accelerator.save_state(str(tmp_path / "state"))
    other, _, _ = prepared(1)
    register(other, tmp_path / "series")
    with pytest.raises(ValueError, match="2 models were saved"):
        other.load_state(str(tmp_path / "state"))
